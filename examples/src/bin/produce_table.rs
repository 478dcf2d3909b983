//! Puts a table into the store: `produce_table FILE ID [SOCKET]`.
//!
//! FILE is CSV (with a header line) or Parquet, ID the 40 hexadecimal digits of the new object's
//! name, SOCKET the store's socket (`/tmp/plasma`). The object is an Arrow IPC stream, which any
//! Arrow implementation can read in place.

use std::error::Error;
use std::fs::File;
use std::io::Seek;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use arrow_array::{RecordBatchIterator, RecordBatchReader};
use plasma::{Client, ObjectId};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (file, id, socket) = match arguments.as_slice() {
        [file, id] => (file, id, "/tmp/plasma"),
        [file, id, socket] => (file, id, socket.as_str()),
        _ => {
            eprintln!("usage: produce_table FILE ID [SOCKET]");
            return ExitCode::from(2);
        }
    };
    match produce(Path::new(file), id, socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("produce_table: {file}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn produce(path: &Path, id: &str, socket: &str) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(socket)?;
    let table = open(path)?;
    let columns = table.schema().fields().len();
    let size = client.put_record_batches(id.parse::<ObjectId>()?, table)?;
    println!("producer: {} is now an object of {size} bytes, {columns} columns", path.display());
    Ok(())
}

fn open(path: &Path) -> Result<Box<dyn RecordBatchReader>, Box<dyn Error>> {
    let is_parquet = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet"));
    if is_parquet { open_parquet(path) } else { open_csv(path) }
}

fn open_parquet(path: &Path) -> Result<Box<dyn RecordBatchReader>, Box<dyn Error>> {
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.build()?;
    Ok(Box::new(reader))
}

fn open_csv(path: &Path) -> Result<Box<dyn RecordBatchReader>, Box<dyn Error>> {
    let mut file = File::open(path)?;
    // "NA" is how statisticians write a missing value.
    let missing = regex::Regex::new("^(NA|)$")?;
    let format =
        arrow_csv::reader::Format::default().with_header(true).with_null_regex(missing.clone());
    let (schema, _) = format.infer_schema(&mut file, None)?;
    file.rewind()?;
    let schema = Arc::new(schema);
    let reader = arrow_csv::ReaderBuilder::new(Arc::clone(&schema))
        .with_header(true)
        .with_null_regex(missing)
        .build(file)?;
    Ok(Box::new(RecordBatchIterator::new(reader, schema)))
}
