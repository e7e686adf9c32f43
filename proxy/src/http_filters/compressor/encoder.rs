//! What compresses: gzip by zlib-rs, brotli and zstd by their crates. A flush after each piece, so that nothing is held
//! back that a client waits for.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::rc::Rc;

use flate2::{Compress, Compression, FlushCompress, Status};
use zstd::zstd_safe::{CParameter, Strategy};

/// Room made at a time for what comes out of zlib.
const ROOM: usize = 4 * 1024;

/// pb `extensions.compression.*.compressor.v3`, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Library {
    Gzip {
        level: u32,
        window_bits: u8,
    },
    Brotli {
        quality: u32,
        window_bits: u32,
        block_bits: u32,
        mode: BrotliMode,
        no_context_modeling: bool,
    },
    Zstd {
        level: i32,
        checksum: bool,
        strategy: Option<Strategy>,
    },
}

/// pb `Brotli.EncoderMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrotliMode {
    Generic,
    Text,
    Font,
}

impl Library {
    /// As in `content-encoding`.
    pub fn content_encoding(&self) -> &'static str {
        match self {
            Self::Gzip { .. } => "gzip",
            Self::Brotli { .. } => "br",
            Self::Zstd { .. } => "zstd",
        }
    }

    /// In names of statistics.
    pub fn stat_name(&self) -> &'static str {
        match self {
            Self::Gzip { .. } => "gzip",
            Self::Brotli { .. } => "brotli",
            Self::Zstd { .. } => "zstd",
        }
    }

    /// What compresses one body.
    ///
    /// # Errors
    /// zstd has no memory, or does not take its settings.
    pub fn encoder(&self) -> io::Result<Encoder> {
        Ok(match self {
            Self::Gzip { level, window_bits } => {
                Encoder::Gzip(Compress::new_gzip(Compression::new(*level), *window_bits))
            }
            Self::Brotli { quality, window_bits, block_bits, mode, no_context_modeling } => {
                use brotli::enc::backward_references::BrotliEncoderMode;
                let params = brotli::enc::BrotliEncoderParams {
                    quality: *quality as i32,
                    lgwin: *window_bits as i32,
                    lgblock: *block_bits as i32,
                    mode: match mode {
                        BrotliMode::Generic => BrotliEncoderMode::BROTLI_MODE_GENERIC,
                        BrotliMode::Text => BrotliEncoderMode::BROTLI_MODE_TEXT,
                        BrotliMode::Font => BrotliEncoderMode::BROTLI_MODE_FONT,
                    },
                    disable_literal_context_modeling: i32::from(*no_context_modeling),
                    ..Default::default()
                };
                let out = Out::default();
                let writer = brotli::CompressorWriter::with_params(out.clone(), ROOM, &params);
                Encoder::Brotli(Box::new(writer), out)
            }
            Self::Zstd { level, checksum, strategy } => {
                let out = Out::default();
                let mut writer = zstd::stream::write::Encoder::new(out.clone(), *level)?;
                writer.include_checksum(*checksum)?;
                if let Some(strategy) = *strategy {
                    writer.set_parameter(CParameter::Strategy(strategy))?;
                }
                Encoder::Zstd(Box::new(writer), out)
            }
        })
    }
}

/// What the writers write to.
#[derive(Debug, Clone, Default)]
pub struct Out(Rc<RefCell<Vec<u8>>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Out {
    fn take(&self, into: &mut Vec<u8>) {
        into.append(&mut self.0.borrow_mut());
    }
}

/// One body on its way.
pub enum Encoder {
    Gzip(Compress),
    Brotli(Box<brotli::CompressorWriter<Out>>, Out),
    Zstd(Box<zstd::stream::write::Encoder<'static, Out>>, Out),
    /// Its end has been written.
    Done,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip(_) => "Gzip",
            Self::Brotli(..) => "Brotli",
            Self::Zstd(..) => "Zstd",
            Self::Done => "Done",
        })
    }
}

impl Encoder {
    /// Compresses a piece; all of it can be decompressed from what is then in `out`.
    ///
    /// # Errors
    /// The library failed: the body cannot go on.
    pub fn write(&mut self, piece: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Gzip(zlib) => deflate(zlib, piece, FlushCompress::Sync, out),
            Self::Brotli(writer, to) => {
                writer.write_all(piece)?;
                writer.flush()?;
                to.take(out);
                Ok(())
            }
            Self::Zstd(writer, to) => {
                writer.write_all(piece)?;
                writer.flush()?;
                to.take(out);
                Ok(())
            }
            Self::Done => Ok(()),
        }
    }

    /// Writes the end; only once.
    ///
    /// # Errors
    /// As for `write`.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match std::mem::replace(self, Self::Done) {
            Self::Gzip(mut zlib) => deflate(&mut zlib, &[], FlushCompress::Finish, out),
            Self::Brotli(writer, to) => {
                drop(writer.into_inner());
                to.take(out);
                Ok(())
            }
            Self::Zstd(writer, to) => {
                writer.finish()?;
                to.take(out);
                Ok(())
            }
            Self::Done => Ok(()),
        }
    }
}

fn deflate(
    zlib: &mut Compress,
    mut piece: &[u8],
    flush: FlushCompress,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    loop {
        out.reserve(ROOM);
        let taken = zlib.total_in();
        let status = zlib.compress_vec(piece, out, flush).map_err(io::Error::other)?;
        piece = &piece[(zlib.total_in() - taken) as usize..];
        // There is more to come while the room was used up.
        let has_room = out.len() < out.capacity();
        match status {
            Status::StreamEnd => return Ok(()),
            Status::Ok | Status::BufError if piece.is_empty() && has_room => return Ok(()),
            Status::Ok | Status::BufError => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn all() -> [Library; 3] {
        let mode = BrotliMode::Text;
        [
            Library::Gzip { level: 6, window_bits: 12 },
            Library::Brotli {
                quality: 3,
                window_bits: 18,
                block_bits: 24,
                mode,
                no_context_modeling: true,
            },
            Library::Zstd { level: 3, checksum: true, strategy: Some(Strategy::ZSTD_lazy) },
        ]
    }

    fn decoded(library: &Library, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut reader: Box<dyn Read + '_> = match library {
            Library::Gzip { .. } => Box::new(flate2::read::GzDecoder::new(bytes)),
            Library::Brotli { .. } => Box::new(brotli::Decompressor::new(bytes, 4096)),
            Library::Zstd { .. } => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
        };
        // What was flushed is there, whether or not there is an end behind it.
        let _ = reader.read_to_end(&mut out);
        out
    }

    #[test]
    fn every_flush_shows_all_that_was_written() {
        let text: Vec<u8> = (0..100_000u32).flat_map(|i| i.wrapping_mul(i).to_be_bytes()).collect();
        for library in all() {
            let mut encoder = library.encoder().unwrap();
            let (mut out, mut written) = (Vec::new(), 0);
            for piece in text.chunks(30_000) {
                encoder.write(piece, &mut out).unwrap();
                written += piece.len();
                assert_eq!(decoded(&library, &out).len(), written, "{library:?}");
            }
            encoder.finish(&mut out).unwrap();
            assert!(matches!(encoder, Encoder::Done));
            let length = out.len();
            encoder.finish(&mut out).unwrap();
            assert_eq!(out.len(), length);
            assert_eq!(decoded(&library, &out), text, "{library:?}");
        }
    }
}
