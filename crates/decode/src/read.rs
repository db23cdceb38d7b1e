//! Integers and floats in a payload, in either byte order. Pure.

/// The types of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Number {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

/// A number as it was read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Single(f32),
    Double(f64),
}

impl Number {
    /// By its name in a schema.toml.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "u8" => Self::U8,
            "i8" => Self::I8,
            "u16" => Self::U16,
            "i16" => Self::I16,
            "u32" => Self::U32,
            "i32" => Self::I32,
            "u64" => Self::U64,
            "i64" => Self::I64,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    /// Its bytes.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Whether it is an integer with a sign.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }

    /// Whether it is a float.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    pub(crate) fn bits(self) -> u8 {
        match self.size() {
            1 => 8,
            2 => 16,
            4 => 32,
            _ => 64,
        }
    }

    /// Digits of the largest integer of the type.
    pub(crate) fn digits(self) -> u8 {
        match (self.bits(), self.is_signed()) {
            (8, _) => 3,
            (16, _) => 5,
            (32, _) => 10,
            (_, true) => 19,
            (_, false) => 20,
        }
    }

    /// The number at `offset`; None if the bytes end before it does.
    #[inline(always)]
    pub(crate) fn read(self, bytes: &[u8], offset: usize, is_big: bool) -> Option<Value> {
        macro_rules! number {
            ($type:ty, $variant:ident, $wide:ty) => {{
                let bytes = *bytes.get(offset..)?.first_chunk()?;
                let number = if is_big { <$type>::from_be_bytes(bytes) } else { <$type>::from_le_bytes(bytes) };
                Value::$variant(<$wide>::from(number))
            }};
        }
        Some(match self {
            Self::U8 => number!(u8, Unsigned, u64),
            Self::I8 => number!(i8, Signed, i64),
            Self::U16 => number!(u16, Unsigned, u64),
            Self::I16 => number!(i16, Signed, i64),
            Self::U32 => number!(u32, Unsigned, u64),
            Self::I32 => number!(i32, Signed, i64),
            Self::U64 => number!(u64, Unsigned, u64),
            Self::I64 => number!(i64, Signed, i64),
            Self::F32 => number!(f32, Single, f32),
            Self::F64 => number!(f64, Double, f64),
        })
    }
}

impl Value {
    /// As an integer of enough bits; None for floats.
    #[inline(always)]
    pub(crate) fn integer(self) -> Option<i128> {
        match self {
            Self::Unsigned(number) => Some(i128::from(number)),
            Self::Signed(number) => Some(i128::from(number)),
            Self::Single(_) | Self::Double(_) => None,
        }
    }
}

/// Text of a fixed size: up to the first NUL, without the spaces that fill it up.
#[inline]
pub(crate) fn padded_text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes[..end].trim_ascii_end())
}
