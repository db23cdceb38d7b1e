//! Decodes the payloads of messages: fixed layouts, SBE, protobuf, FIX.
