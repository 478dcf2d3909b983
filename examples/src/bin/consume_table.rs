//! Waits for a table in the store and computes from its columns in place:
//! `consume_table ID [SOCKET]`.
//!
//! Prints count, minimum, mean and maximum of every numeric column, and proves that nothing was
//! copied: every buffer of every column lies inside the object's memory, and the process's private
//! memory did not grow by the size of the table. Exit code 1 if either is not so.

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::process::ExitCode;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, RecordBatch, RecordBatchReader};
use arrow_schema::{DataType, SchemaRef};
use plasma::{Client, ObjectId};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (id, socket) = match arguments.as_slice() {
        [id] => (id, "/tmp/plasma"),
        [id, socket] => (id, socket.as_str()),
        _ => {
            eprintln!("usage: consume_table ID [SOCKET]");
            return ExitCode::from(2);
        }
    };
    match consume(id, socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("consume_table: {error}");
            ExitCode::FAILURE
        }
    }
}

fn consume(id: &str, socket: &str) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(socket)?;
    println!("consumer: waiting for object {id}");
    let object = client.get_one(id.parse::<ObjectId>()?, None)?.expect("a get without timeout");
    let private_before = private_memory()?;

    let stream = object.record_batches()?;
    let schema = stream.schema();
    let batches = stream.collect::<Result<Vec<_>, _>>()?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    println!("consumer: {rows} rows, {} columns, {} bytes", schema.fields().len(), object.len());
    print_statistics(&schema, &batches);

    let private_growth = private_memory()?.saturating_sub(private_before);
    let proof = find_buffers(&batches, object.data().as_ptr_range());
    println!(
        "consumer: {} of {} column buffers ({} bytes) lie in the store's memory; \
         private memory grew by {} KiB",
        proof.inside,
        proof.inside + proof.outside,
        proof.bytes,
        private_growth / 1024
    );
    // Room for what printing and the library's own structures take.
    let allowance = 4 << 20;
    if proof.outside > 0 || private_growth > allowance {
        return Err("the table was copied".into());
    }
    Ok(())
}

fn print_statistics(schema: &SchemaRef, batches: &[RecordBatch]) {
    println!("{:>20} {:>9} {:>12} {:>12} {:>12}", "column", "values", "min", "mean", "max");
    for (index, field) in schema.fields().iter().enumerate() {
        let columns = batches.iter().map(|batch| batch.column(index));
        let mut summary = Summary::default();
        for column in columns {
            match field.data_type() {
                DataType::Float64 => {
                    column
                        .as_primitive::<Float64Type>()
                        .iter()
                        .flatten()
                        .for_each(|x| summary.add(x));
                }
                DataType::Int64 => {
                    let values = column.as_primitive::<Int64Type>().iter().flatten();
                    values.for_each(|x| summary.add(x as f64));
                }
                _ => {}
            }
        }
        if summary.count > 0 {
            let mean = summary.sum / summary.count as f64;
            println!(
                "{:>20} {:>9} {:>12.2} {mean:>12.2} {:>12.2}",
                field.name(),
                summary.count,
                summary.min,
                summary.max
            );
        }
    }
}

struct Summary {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

impl Default for Summary {
    fn default() -> Self {
        Self { count: 0, sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Summary {
    fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }
}

#[derive(Default)]
struct BufferProof {
    inside: usize,
    outside: usize,
    bytes: usize,
}

/// Looks where the buffers of all columns lie, those of nested columns included.
fn find_buffers(batches: &[RecordBatch], object: Range<*const u8>) -> BufferProof {
    let mut proof = BufferProof::default();
    let columns = batches.iter().flat_map(RecordBatch::columns);
    let mut arrays: Vec<_> = columns.map(|column| column.to_data()).collect();
    while let Some(array) = arrays.pop() {
        arrays.extend(array.child_data().iter().cloned());
        let validity = array.nulls().map(|nulls| nulls.buffer());
        for buffer in array.buffers().iter().chain(validity).filter(|buffer| !buffer.is_empty()) {
            let range = buffer.as_slice().as_ptr_range();
            if object.start <= range.start && range.end <= object.end {
                proof.inside += 1;
                proof.bytes += buffer.len();
            } else {
                proof.outside += 1;
            }
        }
    }
    proof
}

/// Bytes of resident memory that belong to this process alone.
fn private_memory() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")).ok_or("no RssAnon")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}
