//! What payloads are decoded by: a queue's schema.toml, or a command.

use chronfs::Queue;
use chronfs::queue::Entry;

use crate::failure::Failure;
use crate::{FormatName, TailArgs};

#[cfg(feature = "decode")]
pub(crate) use decoders::Decoders;

/// Without the feature `decode` nothing is decoded.
#[cfg(not(feature = "decode"))]
pub(crate) struct Decoders;

#[cfg(not(feature = "decode"))]
impl Decoders {
    pub(crate) fn open(args: &TailArgs, _queues: &[Queue]) -> Result<Self, Failure> {
        if args.decode || args.decode_with.is_some() {
            return Err(Failure::Usage(
                "tail: this chron-cli was built without decoding; the package chronfs has it, or from source: cargo \
                 install --locked --path . --features decode"
                    .into(),
            ));
        }
        Ok(Self)
    }

    pub(crate) fn render(
        &mut self,
        format: FormatName,
        _queue: &Queue,
        entry: &Entry<'_>,
        name: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        format.render(entry, name, out);
    }
}

#[cfg(feature = "decode")]
mod decoders {
    use std::path::PathBuf;

    use chronfs::decode::{Command, Decode, SCHEMA_FILE, Schema};
    use chronfs::view::{render_decoded, render_decoded_readable, render_decoded_txt};

    use super::{Entry, Failure, FormatName, Queue, TailArgs};

    pub(crate) enum Decoders {
        Nothing,
        /// Of each queue, in the order of the command line.
        Schemas(Vec<(PathBuf, Schema)>),
        Command(Command),
    }

    impl Decoders {
        pub(crate) fn open(args: &TailArgs, queues: &[Queue]) -> Result<Self, Failure> {
            if !args.decode && args.decode_with.is_none() {
                return Ok(Self::Nothing);
            }
            if matches!(args.format, FormatName::Bin | FormatName::Hex) {
                return Err(Failure::Usage(
                    "tail: bin and hex show payloads as they are; choose another --format".into(),
                ));
            }
            if let Some(command) = &args.decode_with {
                let started = Command::start(command);
                return started.map(Self::Command).map_err(|e| Failure::new(format!("cannot start the shell: {e}")));
            }
            queues
                .iter()
                .map(|queue| Ok((queue.path().to_owned(), schema(queue)?)))
                .collect::<Result<_, _>>()
                .map(Self::Schemas)
        }

        pub(crate) fn render(
            &mut self,
            format: FormatName,
            queue: &Queue,
            entry: &Entry<'_>,
            name: Option<&str>,
            out: &mut Vec<u8>,
        ) {
            match self {
                Self::Nothing => format.render(entry, name, out),
                Self::Command(command) => show(format, entry, name, command, out),
                Self::Schemas(schemas) => match schemas.iter().find(|(path, _)| path == queue.path()) {
                    Some((_, schema)) => show(format, entry, name, &mut &*schema, out),
                    None => format.render(entry, name, out),
                },
            }
        }
    }

    fn show(format: FormatName, entry: &Entry<'_>, name: Option<&str>, decoder: &mut impl Decode, out: &mut Vec<u8>) {
        match format {
            FormatName::Auto | FormatName::Hex | FormatName::Bin => render_decoded_readable(entry, decoder, out),
            FormatName::Jsonl => render_decoded(entry, name, decoder, out),
            FormatName::Txt => render_decoded_txt(entry, decoder, out),
        }
    }

    fn schema(queue: &Queue) -> Result<Schema, Failure> {
        let path = queue.path().display();
        match Schema::load(queue.path()) {
            Ok(Some(schema)) => Ok(schema),
            Ok(None) => Err(Failure::new(format!(
                "{path}: it has no {SCHEMA_FILE}; write one (docs/decode.md), or name a decoder: --decode-with COMMAND"
            ))),
            Err(error) => Err(Failure::new(format!("{path}/{error}"))),
        }
    }
}

#[cfg(all(test, not(feature = "decode")))]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{Cli, Command};

    #[test]
    fn a_build_without_decoding_says_how_to_get_it() {
        let open = |options: &[&str]| {
            let line = [&["chron-cli", "tail", "q"], options].concat();
            let Command::Tail(args) = Cli::try_parse_from(line).unwrap().command else { unreachable!() };
            Decoders::open(&args, &[]).map(drop)
        };
        for options in [&["--decode"][..], &["--decode-with", "cat"]] {
            let failure = open(options).unwrap_err();
            assert!(matches!(failure, Failure::Usage(_)), "{failure:?}");
            assert!(failure.text().contains("--features decode"), "{failure:?}");
        }
        open(&[]).unwrap();
    }
}
