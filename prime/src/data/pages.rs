//! Pages of a Parquet file that the `parquet` crate decompresses by libraries in C, or not at all: zstd and brotli, by decoders in Rust.
//!
//! The crate reads a compressed column as one that is not, and hands out its pages as they lie in the file; what is compressed of each is
//! decompressed here, before the crate takes values from it. Other columns are the crate's own.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

/// What is decompressed here.
#[derive(Clone, Copy)]
enum Codec {
    Zstd,
    Brotli,
}

impl Codec {
    fn of(compression: Compression) -> Option<Codec> {
        match compression {
            Compression::ZSTD(_) => Some(Codec::Zstd),
            Compression::BROTLI(_) => Some(Codec::Brotli),
            _ => None,
        }
    }
}

/// Whether pages of this compression are read, here or by the crate.
pub(super) fn are_read(compression: Compression) -> bool {
    use Compression::{GZIP, LZ4, LZ4_RAW, SNAPPY, UNCOMPRESSED};
    let by_the_crate = matches!(compression, UNCOMPRESSED | SNAPPY | GZIP(_) | LZ4 | LZ4_RAW);
    by_the_crate || Codec::of(compression).is_some()
}

/// A file of which every column is read.
pub(super) struct Pages {
    file: Arc<File>,
    reader: SerializedFileReader<File>,
}

impl Pages {
    /// Opens a file and reads what it says of itself.
    pub(super) fn open(file: File) -> Result<Pages> {
        let reader = SerializedFileReader::new(file.try_clone()?)?;
        Ok(Pages { file: Arc::new(file), reader })
    }
}

impl FileReader for Pages {
    fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(Group { file: self.file.clone(), reader: self.reader.get_row_group(i)? }))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct Group<'a> {
    file: Arc<File>,
    reader: Box<dyn RowGroupReader + 'a>,
}

impl RowGroupReader for Group<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.reader.metadata()
    }

    fn num_columns(&self) -> usize {
        self.reader.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata().column(i);
        let Some(codec) = Codec::of(column.compression()) else {
            return self.reader.get_column_page_reader(i);
        };
        let raw = column.clone().into_builder();
        let raw = raw.set_compression(Compression::UNCOMPRESSED).build()?;
        let rows = usize::try_from(self.metadata().num_rows())?;
        let pages = SerializedPageReader::new(self.file.clone(), &raw, rows, None)?;
        // No page is larger than all of its column in this group.
        let most = u64::try_from(column.uncompressed_size())?;
        Ok(Box::new(Decompressed { pages, codec, most }))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&parquet::bloom_filter::Sbbf> {
        self.reader.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// The pages of one column.
struct Decompressed {
    pages: SerializedPageReader<File>,
    codec: Codec,
    most: u64,
}

impl Decompressed {
    fn bytes(&self, compressed: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let damaged = |error: &dyn std::fmt::Display| {
            ParquetError::General(format!("a page cannot be decompressed: {error}"))
        };
        let end = out.len() as u64 + self.most;
        let mut take = |stream: &mut dyn Read| -> Result<()> {
            let left = end.saturating_sub(out.len() as u64);
            stream.take(left + 1).read_to_end(out).map_err(|error| damaged(&error))?;
            if out.len() as u64 > end {
                return Err(damaged(&"it is larger than its column is said to be"));
            }
            Ok(())
        };
        match self.codec {
            Codec::Brotli => take(&mut brotli_decompressor::Decompressor::new(compressed, 1 << 12)),
            Codec::Zstd => {
                // Frames, one behind the other; as good as always there is one.
                let mut left = compressed;
                while !left.is_empty() {
                    let mut frame = ruzstd::decoding::StreamingDecoder::new(&mut left)
                        .map_err(|error| damaged(&error))?;
                    take(&mut frame)?;
                    let decoder = frame.into_frame_decoder();
                    let stated = decoder.get_checksum_from_data();
                    if stated.is_some() && stated != decoder.get_calculated_checksum() {
                        return Err(damaged(&"its checksum is another"));
                    }
                }
                Ok(())
            }
        }
    }

    fn page(&self, mut page: Page) -> Result<Page> {
        let (buffer, start) = match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => (buf, 0),
            Page::DataPageV2 { is_compressed: false, .. } => return Ok(page),
            // The levels before the values are not compressed.
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                (buf, *def_levels_byte_len as usize + *rep_levels_byte_len as usize)
            }
        };
        let (levels, compressed) = buffer.split_at_checked(start).ok_or_else(|| {
            ParquetError::General("a page is shorter than its levels".to_string())
        })?;
        let mut out = levels.to_vec();
        self.bytes(compressed, &mut out)?;
        *buffer = out.into();
        Ok(page)
    }
}

impl Iterator for Decompressed {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Decompressed {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.pages.get_next_page()?.map(|page| self.page(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }
}
