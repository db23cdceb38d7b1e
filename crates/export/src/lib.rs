//! Exports chronfs queues as Parquet, Arrow and CSV.
