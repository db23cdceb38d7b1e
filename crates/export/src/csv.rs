//! What CSV has no types for, as text: bytes are base64, lists and structs JSON, and the payload is text, or base64 in a
//! column of its own where it is not text.

use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray as _;
use arrow_array::{Array, ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow_json::writer::{EncoderOptions, make_encoder};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Schema};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The batch with columns that CSV can have.
pub(crate) fn flat(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let (mut fields, mut columns) = (Vec::new(), Vec::<ArrayRef>::new());
    let mut add = |field: &FieldRef, name: &str, column: ArrayRef| {
        fields.push(Field::new(name, column.data_type().clone(), field.is_nullable()));
        columns.push(column);
    };
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        match column.data_type() {
            DataType::Binary if field.name() == "payload" => {
                let payloads = column.as_binary::<i32>();
                let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
                let texts: StringArray =
                    payloads.iter().map(|bytes| bytes.and_then(|bytes| std::str::from_utf8(bytes).ok())).collect();
                add(field, "payload", Arc::new(texts));
                add(field, "payload_b64", base64_of(payloads, |bytes| !is_text(bytes)));
            }
            DataType::Binary => add(field, field.name(), base64_of(column.as_binary(), |_| true)),
            kind if kind.is_nested() => add(field, field.name(), json_of(field, column)?),
            _ => add(field, field.name(), Arc::clone(column)),
        }
    }
    let fields: Vec<Field> = fields.into_iter().map(|field| field.with_nullable(true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn base64_of(bytes: &BinaryArray, is_wanted: impl Fn(&[u8]) -> bool) -> ArrayRef {
    let encoded = bytes.iter().map(|bytes| bytes.filter(|bytes| is_wanted(bytes)).map(|bytes| STANDARD.encode(bytes)));
    Arc::new(encoded.collect::<StringArray>())
}

fn json_of(field: &FieldRef, column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let mut encoder = make_encoder(field, column, &options)?;
    let (mut texts, mut text) = (StringBuilder::new(), Vec::new());
    for row in 0..column.len() {
        text.clear();
        if column.is_valid(row) {
            encoder.encode(row, &mut text);
        }
        let text = std::str::from_utf8(&text).map_err(|error| ArrowError::JsonError(error.to_string()))?;
        texts.append_option(column.is_valid(row).then_some(text));
    }
    Ok(Arc::new(texts.finish()))
}
