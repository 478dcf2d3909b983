//! Record batches through a real store: what comes back, where it lies, and what damage does.
#![cfg(feature = "arrow")]

mod support;

use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int64Array, ListArray,
    RecordBatch, RecordBatchIterator, RecordBatchReader, StringArray,
};
use arrow_schema::{ArrowError, SchemaRef};
use plasma::{Client, Error, ObjectId};
use support::StoreProcess;

fn batch(rows: i32) -> RecordBatch {
    let numbers = Int64Array::from_iter((0..rows).map(|n| (n % 7 != 0).then_some(i64::from(n))));
    let halves = Float64Array::from_iter_values((0..rows).map(|n| f64::from(n) / 2.0));
    let names = StringArray::from_iter_values((0..rows).map(|n| format!("name {n}")));
    let flags = BooleanArray::from_iter((0..rows).map(|n| Some(n % 3 == 0)));
    let kinds: DictionaryArray<Int32Type> =
        ["red", "green", "blue"].iter().cycle().zip(0..rows).map(|(kind, _)| Some(*kind)).collect();
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..rows).map(|n| Some(vec![Some(n), None, Some(n + 1)])),
    );
    RecordBatch::try_from_iter([
        ("numbers", Arc::new(numbers) as ArrayRef),
        ("halves", Arc::new(halves) as _),
        ("names", Arc::new(names) as _),
        ("flags", Arc::new(flags) as _),
        ("kinds", Arc::new(kinds) as _),
        ("lists", Arc::new(lists) as _),
    ])
    .expect("columns of one length")
}

fn reader(
    schema: SchemaRef,
    batches: Vec<Result<RecordBatch, ArrowError>>,
) -> impl RecordBatchReader {
    RecordBatchIterator::new(batches, schema)
}

fn put(client: &Client, batches: &[RecordBatch]) -> ObjectId {
    let id = ObjectId::random();
    let all = batches.iter().cloned().map(Ok).collect();
    client.put_record_batches(id, reader(batches[0].schema(), all)).expect("batches can be put");
    id
}

#[test]
fn batches_come_back_equal_and_lie_in_the_object() {
    let store = StoreProcess::start("64M");
    // A slice, whose buffers do not begin where those of its array do, and an empty batch.
    let sent = [batch(1000), batch(500).slice(13, 101), batch(0)];
    let id = put(&store.client(), &sent);

    let object = store.client().get_one(id, None).unwrap().expect("it was put");
    let stream = object.record_batches().unwrap();
    assert_eq!(stream.schema(), sent[0].schema());
    let received: Vec<RecordBatch> = stream.map(|batch| batch.unwrap()).collect();
    assert_eq!(received.len(), sent.len());
    for (received, sent) in received.iter().zip(&sent) {
        for (received, sent) in received.columns().iter().zip(sent.columns()) {
            assert_eq!(received, sent);
        }
    }

    let memory = object.data().as_ptr_range();
    let mut arrays: Vec<_> =
        received.iter().flat_map(|batch| batch.columns()).map(|array| array.to_data()).collect();
    let mut looked_at = 0;
    while let Some(array) = arrays.pop() {
        arrays.extend(array.child_data().iter().cloned());
        for buffer in array.buffers().iter().filter(|buffer| !buffer.is_empty()) {
            let place = buffer.as_slice().as_ptr_range();
            assert!(memory.start <= place.start && place.end <= memory.end, "a buffer was copied");
            looked_at += 1;
        }
    }
    assert!(looked_at >= 16, "only {looked_at} buffers were looked at");
}

#[test]
fn columns_keep_the_object_alive_and_held() {
    let store = StoreProcess::start("64M");
    let client = store.client();
    let id = put(&client, &[batch(1000)]);
    let object = client.get_one(id, None).unwrap().expect("it was put");
    let received = object.record_batches().unwrap().next().expect("one batch").unwrap();
    let column = Arc::clone(received.column(0));
    drop((object, received));
    client.evict(u64::MAX).unwrap();
    assert!(client.contains(id).unwrap(), "a column holds the object");
    assert_eq!(column.as_ref(), batch(1000).column(0).as_ref());
    drop(column);
    assert_eq!(client.evict(u64::MAX).unwrap().objects, 1);
}

#[test]
fn a_reader_that_fails_leaves_nothing_behind() {
    let store = StoreProcess::start("64M");
    let client = store.client();
    let id = ObjectId::random();
    let broken = vec![Ok(batch(10)), Err(ArrowError::CsvError("line 11".into()))];
    let error = client.put_record_batches(id, reader(batch(0).schema(), broken)).unwrap_err();
    assert!(matches!(&error, Error::Arrow(_)) && error.to_string().contains("line 11"), "{error}");
    assert_eq!(client.stats().unwrap().objects, 0);
}

#[test]
fn what_is_no_stream_is_an_error() {
    let store = StoreProcess::start("64M");
    let client = store.client();
    let whole = client.get_one(put(&client, &[batch(100)]), None).unwrap().expect("it was put");
    let mut cut_short = whole.data()[..whole.len() / 2].to_vec();
    for foreign in [&b""[..], b"not Arrow at all, but long enough to look at", &[0xff; 64]] {
        let id = ObjectId::random();
        client.put(id, foreign, b"").unwrap();
        let object = client.get_one(id, None).unwrap().expect("it was put");
        let error = object.record_batches().map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Arrow(_)), "{foreign:?}: {error}");
    }
    // The schema is intact, a batch is not: the iterator says so once and ends.
    cut_short.truncate(whole.len() / 2);
    let last = cut_short.len() - 1;
    cut_short[last] ^= 0xff;
    let id = ObjectId::random();
    client.put(id, &cut_short, b"").unwrap();
    let object = client.get_one(id, None).unwrap().expect("it was put");
    let batches: Vec<_> = object.record_batches().unwrap().collect();
    assert!(batches.last().is_some_and(Result::is_err), "{} batches", batches.len());
    assert_eq!(batches.iter().filter(|batch| batch.is_err()).count(), 1);
}
