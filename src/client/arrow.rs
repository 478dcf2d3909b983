//! Arrow record batches in the store (feature `arrow`).
//!
//! An object holds one Arrow IPC *stream*: what `pyarrow.ipc.open_stream` reads. Writing asks the
//! Arrow library for the pieces of the stream, which share the batches' own buffers, so their sizes
//! are known before anything is copied and each buffer is copied once, into the object. Reading
//! hands the library the object's memory: the columns lie in the store, nothing is copied.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchReader};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::writer::StreamEncoder;
use arrow_schema::{ArrowError, Schema, SchemaRef};

use crate::ids::ObjectId;

use super::{Client, CreateOptions, Error, ObjectBuffer};

impl Client {
    /// Puts all batches of a reader into one object, as an Arrow IPC stream. Returns the object's
    /// size in bytes.
    ///
    /// The batches are kept until the last one is there, since the size of the object has to be
    /// known; their buffers are shared until then, and copied once, into the object.
    ///
    /// # Errors
    /// [`Error::Arrow`] if the reader fails or a type has no IPC form; otherwise as
    /// [`Client::create`]. Nothing is left behind.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator, cast::AsArray};
    /// use plasma::{Client, ObjectId};
    ///
    /// let client = Client::connect(store.path())?;
    /// let column = std::sync::Arc::new(Int64Array::from(vec![1, 2, 3]));
    /// let batch = RecordBatch::try_from_iter([("n", column as _)])?;
    /// let schema = batch.schema();
    /// let id = ObjectId::random();
    /// client.put_record_batches(id, RecordBatchIterator::new([Ok(batch)], schema))?;
    ///
    /// let object = client.get_one(id, None)?.expect("it is there");
    /// for batch in object.record_batches()? {
    ///     let batch = batch?;
    ///     let column = batch.column(0).as_primitive::<arrow_array::types::Int64Type>();
    ///     assert_eq!(column.values(), &[1, 2, 3]);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn put_record_batches(
        &self,
        id: ObjectId,
        batches: impl RecordBatchReader,
    ) -> Result<u64, Error> {
        let pieces = encode(&batches.schema(), batches)?;
        let size = pieces.iter().map(|piece| piece.len() as u64).sum();
        let mut object = self.create(id, size, 0, CreateOptions::default())?;
        let mut rest = object.data_mut();
        for piece in &pieces {
            let place = rest.split_off_mut(..piece.len()).expect("there is room for all pieces");
            place.copy_from_slice(piece);
        }
        object.seal()?;
        Ok(size)
    }
}

/// The pieces of an IPC stream, in order.
fn encode(
    schema: &Schema,
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
) -> Result<Vec<Buffer>, ArrowError> {
    let mut encoder = StreamEncoder::try_new(schema)?;
    let mut pieces = Vec::new();
    for batch in batches {
        pieces.extend(encoder.encode(&batch?)?);
    }
    pieces.extend(encoder.finish()?);
    Ok(pieces)
}

impl ObjectBuffer {
    /// Reads the object as an Arrow IPC stream, in place. The batches keep the object alive and
    /// held for as long as one of their columns is.
    ///
    /// # Errors
    /// [`Error::Arrow`] if the object does not begin with a schema. A batch that is damaged further
    /// on is an error of the iterator.
    pub fn record_batches(&self) -> Result<RecordBatches, Error> {
        let rest = Buffer::from(bytes::Bytes::from_owner(OwnedData(self.clone())));
        let mut stream = RecordBatches {
            schema: Arc::new(Schema::empty()),
            decoder: StreamDecoder::new(),
            rest,
            ended: false,
            next: None,
        };
        let first = stream.decode();
        match (stream.decoder.schema(), first) {
            (Some(schema), next) => Ok(RecordBatches { schema, next, ..stream }),
            (None, Some(Err(damaged))) => Err(damaged.into()),
            (None, _) => {
                let text = "the object does not begin with an Arrow schema";
                Err(ArrowError::IpcError(text.to_owned()).into())
            }
        }
    }
}

/// The data of an object, as something that a buffer of the Arrow library can own.
struct OwnedData(ObjectBuffer);

impl AsRef<[u8]> for OwnedData {
    fn as_ref(&self) -> &[u8] {
        self.0.data()
    }
}

/// The record batches of an object, whose columns lie in the store.
#[derive(Debug)]
pub struct RecordBatches {
    schema: SchemaRef,
    decoder: StreamDecoder,
    rest: Buffer,
    /// The stream has come to its end, or to a damaged batch.
    ended: bool,
    /// The first batch, which had to be decoded to know the schema.
    next: Option<Result<RecordBatch, ArrowError>>,
}

impl RecordBatches {
    fn decode(&mut self) -> Option<Result<RecordBatch, ArrowError>> {
        if self.ended {
            return None;
        }
        let batch = self.decoder.decode(&mut self.rest).transpose();
        if !matches!(batch, Some(Ok(_))) {
            // What follows a damaged batch cannot be trusted, and an end has to be a proper one.
            self.ended = true;
        }
        batch.or_else(|| self.decoder.finish().err().map(Err))
    }
}

impl Iterator for RecordBatches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next.take().or_else(|| self.decode())
    }
}

impl RecordBatchReader for RecordBatches {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
