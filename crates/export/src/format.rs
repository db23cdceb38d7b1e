//! The formats of files, all compressed by zstd.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_schema::SchemaRef;
use clap::ValueEnum;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::WriterProperties;

use crate::csv::flat;

/// zstd's own default: more costs much time and saves little.
const LEVEL: i32 = 3;
/// Row groups are what readers skip by their statistics.
pub(crate) const ROWS_OF_A_GROUP: usize = 1 << 17;
/// The same, in bytes, for long payloads.
pub(crate) const BYTES_OF_A_GROUP: usize = 64 << 20;

/// The format of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For duckdb, polars, pandas, Spark
    Parquet,
    /// Arrow IPC files, for pyarrow and polars
    Arrow,
    /// With a header; lists and structs are JSON
    Csv,
    /// The lines of `chron-cli tail --decode --format jsonl`
    Jsonl,
}

impl Format {
    /// The end of a file's name.
    pub(crate) fn ending(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Arrow => "arrow",
            Self::Csv => "csv.zst",
            Self::Jsonl => "jsonl.zst",
        }
    }
}

type Zstd = zstd::Encoder<'static, File>;

/// Writes a file.
pub(crate) enum Writer {
    Parquet(Box<ArrowWriter<File>>),
    Arrow(Box<FileWriter<BufWriter<File>>>),
    Csv(Box<arrow_csv::Writer<Zstd>>),
    Lines(Zstd),
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

impl Writer {
    /// `schema`: the columns; there are none in lines.
    pub(crate) fn new(format: Format, file: File, schema: &SchemaRef) -> Result<Self> {
        Ok(match format {
            Format::Parquet => {
                let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties()?))?;
                Self::Parquet(Box::new(writer))
            }
            Format::Arrow => {
                let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD))?;
                let writer = FileWriter::try_new_with_options(BufWriter::new(file), schema, options)?;
                Self::Arrow(Box::new(writer))
            }
            Format::Csv => Self::Csv(Box::new(arrow_csv::Writer::new(Zstd::new(file, LEVEL)?))),
            Format::Jsonl => Self::Lines(Zstd::new(file, LEVEL)?),
        })
    }

    pub(crate) fn batch(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Self::Parquet(writer) => writer.write(batch)?,
            Self::Arrow(writer) => writer.write(batch)?,
            Self::Csv(writer) => writer.write(&flat(batch)?)?,
            Self::Lines(_) => {}
        }
        Ok(())
    }

    pub(crate) fn lines(&mut self, lines: &[u8]) -> Result<()> {
        match self {
            Self::Lines(encoder) => encoder.write_all(lines)?,
            Self::Parquet(_) | Self::Arrow(_) | Self::Csv(_) => {}
        }
        Ok(())
    }

    /// Ends the file, so that it survives a power cut.
    pub(crate) fn finish(self) -> Result<()> {
        let file = match self {
            Self::Parquet(writer) => writer.into_inner()?,
            Self::Arrow(writer) => writer.into_inner()?.into_inner()?,
            Self::Csv(writer) => writer.into_inner().finish()?,
            Self::Lines(encoder) => encoder.finish()?,
        };
        file.sync_all()?;
        Ok(())
    }
}

fn properties() -> Result<WriterProperties> {
    let by_seq = SortingColumn { column_idx: 0, descending: false, nulls_first: false };
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(LEVEL)?))
        .set_max_row_group_row_count(Some(ROWS_OF_A_GROUP))
        .set_max_row_group_bytes(Some(BYTES_OF_A_GROUP))
        .set_sorting_columns(Some(vec![by_seq]))
        .set_created_by(concat!("chronfs ", env!("CARGO_PKG_VERSION")).to_owned());
    Ok(properties.build())
}
