//! Reading a file that may be damaged.
//!
//! What bounds a walk through a tree: its depth; the pages it reads, which are
//! no more than the file has; that keys ascend, those of the branches included;
//! that the elements of a page do not share bytes; and that keys and values have a
//! greatest length.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    Error, MAX_BUCKETS, MAX_KEY_LEN, MAX_VALUE_LEN, Pair,
    page::{
        BUCKET_FLAG, BUCKET_LEN, BranchElement, BucketHeader, ELEMENT_LEN, FIRST_PAGE, HEADER_LEN,
        Header, Kind, LeafElement, META_LEN, Meta, PAGE_SIZES,
    },
};

/// The deepest tree that is read. A branch has two children at least, so a
/// sound file never comes near.
const MAX_DEPTH: usize = 40;

/// A page that is read in one piece. Of a longer one only the elements are, and
/// then item by item.
const WHOLE_PAGE_LEN: u64 = 256 << 10;

/// A file open for reading.
///
/// Nothing but its metas is in memory; a walk holds one page per level and the
/// item that it gives.
#[derive(Debug)]
pub struct Reader {
    file: File,
    path: PathBuf,
    meta: Meta,
}

impl Reader {
    /// Opens the file at `path` by the valid one of its two meta pages that has
    /// the higher transaction id.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if neither meta page is valid or the file is shorter
    /// than they say; [`Error::Io`] if it cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |cause| Error::Io(format!("open {}", path.display()), cause);
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        let meta = find_meta(&file, len).map_err(|problem| match problem {
            MetaProblem::Io(cause) => failed(cause),
            MetaProblem::Invalid(why) => {
                Error::Damaged(format!("{} cannot be read: {why}", path.display()))
            }
        })?;
        let reader = Self { file, path: path.to_path_buf(), meta };
        let needed = meta.high_water.checked_mul(reader.page_size());
        if needed.is_none_or(|needed| needed > len) {
            let pages = meta.high_water;
            return Err(reader.damaged(format!("it has {len} bytes, too few for {pages} pages")));
        }
        Ok(reader)
    }

    /// Bytes of all pages, without what stands behind them.
    pub fn size_bytes(&self) -> u64 {
        self.meta.high_water.saturating_mul(self.page_size())
    }

    /// The names of the buckets, ascending.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if their tree is damaged or has more than
    /// [`MAX_BUCKETS`]; [`Error::Io`] if the disk refuses.
    pub fn buckets(&self) -> Result<Vec<Bytes>, Error> {
        let mut names = Vec::new();
        for item in self.root()? {
            if names.len() == MAX_BUCKETS {
                return Err(self.damaged(format!("it has more than {MAX_BUCKETS} buckets")));
            }
            names.push(item?.0);
        }
        Ok(names)
    }

    /// All of the bucket `name` in ascending order of keys, or `None` if there is
    /// no such bucket.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the way to the bucket is damaged; [`Error::Io`] if
    /// the disk refuses.
    pub fn iter(&self, name: &[u8]) -> Result<Option<Iter<'_>>, Error> {
        for item in self.root()? {
            let (found, value) = item?;
            if found == name {
                return self.bucket(&value).map(Some);
            }
        }
        Ok(None)
    }

    /// The tree of buckets.
    fn root(&self) -> Result<Iter<'_>, Error> {
        let mut iter = Iter::new(self, BUCKET_FLAG);
        iter.descend(self.meta.root)?;
        Ok(iter)
    }

    /// The bucket whose element has this value.
    fn bucket(&self, value: &Bytes) -> Result<Iter<'_>, Error> {
        let Some(header) = value.first_chunk::<BUCKET_LEN>() else {
            return Err(self.damaged("the header of a bucket is cut off".into()));
        };
        let mut iter = Iter::new(self, 0);
        match BucketHeader::decode(header).root {
            0 => iter.frames.push(Frame::new(self.inline_page(value.slice(BUCKET_LEN..))?)),
            root => iter.descend(root)?,
        }
        Ok(iter)
    }

    fn page_size(&self) -> u64 {
        u64::from(self.meta.page_size)
    }

    fn damaged(&self, what: String) -> Error {
        Error::Damaged(format!("{} is damaged: {what}", self.path.display()))
    }

    /// `len` bytes at `offset`. Both were checked against the file's length, and
    /// `len` against what may be held in memory.
    fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).map_err(|cause| {
            let path = self.path.display();
            Error::Io(format!("read {len} bytes of {path} at {offset}"), cause)
        })?;
        Ok(Bytes::from(bytes))
    }

    /// The page `id`, which must be of a tree.
    fn page(&self, id: u64) -> Result<Page, Error> {
        let pages = self.meta.high_water;
        if !(FIRST_PAGE..pages).contains(&id) {
            return Err(self.damaged(format!("it refers to page {id} of {pages}")));
        }
        let offset = id * self.page_size();
        let mut head = self.read(offset, self.meta.page_size as usize)?;
        let (kind, header) = self.tree_header(&head, id)?;
        if header.id != id {
            return Err(self.damaged(format!("page {id} says that it is page {}", header.id)));
        }
        let own_pages = u64::from(header.overflow) + 1;
        if own_pages > pages - id {
            return Err(self.damaged(format!("page {id} overflows behind the end of the file")));
        }
        let len = own_pages * self.page_size();
        let count = usize::from(header.count);
        let elements_end = (HEADER_LEN + count * ELEMENT_LEN) as u64;
        if elements_end > len {
            return Err(self.damaged(format!("page {id} has no room for its {count} elements")));
        }
        let wanted = if len <= WHOLE_PAGE_LEN { len } else { elements_end };
        if wanted > head.len() as u64 {
            head = self.read(offset, wanted as usize)?;
        }
        Ok(Page { id, kind, count, offset, len, own_pages, head })
    }

    /// The page of a bucket that stands in the bucket's own value.
    fn inline_page(&self, head: Bytes) -> Result<Page, Error> {
        let (kind, header) = self.tree_header(&head, 0)?;
        let count = usize::from(header.count);
        let elements_end = HEADER_LEN + count * ELEMENT_LEN;
        if kind != Kind::Leaf || elements_end > head.len() {
            return Err(self.damaged("an inline bucket is not a whole leaf page".into()));
        }
        let len = head.len() as u64;
        Ok(Page { id: 0, kind, count, offset: 0, len, own_pages: 0, head })
    }

    fn tree_header(&self, head: &Bytes, id: u64) -> Result<(Kind, Header), Error> {
        let header = head.first_chunk::<HEADER_LEN>().map(Header::decode);
        match header.and_then(|header| Some((header.kind?, header))) {
            Some((kind @ (Kind::Branch | Kind::Leaf), header)) => Ok((kind, header)),
            _ => Err(self.damaged(format!("page {id} is neither a branch nor a leaf"))),
        }
    }
}

enum MetaProblem {
    Io(std::io::Error),
    Invalid(&'static str),
}

/// The meta that holds. The second one stands where the first one's page size
/// says, and is looked for at every page size if the first one is damaged.
fn find_meta(file: &File, len: u64) -> Result<Meta, MetaProblem> {
    let first = meta_at(file, 0, len)?;
    let sizes = match first {
        Ok(meta) => vec![u64::from(meta.page_size)],
        Err(_) => {
            (PAGE_SIZES.0.ilog2()..=PAGE_SIZES.1.ilog2()).map(|shift| 1_u64 << shift).collect()
        }
    };
    let mut best = first;
    for size in sizes {
        let Ok(second) = meta_at(file, size, len)? else { continue };
        let is_newer = best.is_ok_and(|best| second.txid > best.txid);
        if u64::from(second.page_size) == size && (best.is_err() || is_newer) {
            best = Ok(second);
        }
    }
    best.map_err(MetaProblem::Invalid)
}

/// The meta of the page at `offset`.
fn meta_at(file: &File, offset: u64, len: u64) -> Result<Result<Meta, &'static str>, MetaProblem> {
    if offset + ((HEADER_LEN + META_LEN) as u64) > len {
        return Ok(Err("it is too short for a meta page"));
    }
    let mut bytes = [0; META_LEN];
    file.read_exact_at(&mut bytes, offset + HEADER_LEN as u64).map_err(MetaProblem::Io)?;
    Ok(Meta::decode(&bytes))
}

/// A page of a tree.
#[derive(Debug)]
struct Page {
    /// 0 for an inline page.
    id: u64,
    kind: Kind,
    count: usize,
    /// Where it begins in the file.
    offset: u64,
    /// With its overflow.
    len: u64,
    /// The pages of the file that it takes.
    own_pages: u64,
    /// Its beginning, elements included; the whole page if it is not long.
    head: Bytes,
}

impl Page {
    /// The element at `index`, and where it stands.
    fn element(&self, index: usize) -> Option<(u64, [u8; ELEMENT_LEN])> {
        let at = HEADER_LEN + index * ELEMENT_LEN;
        Some((at as u64, *self.head.get(at..)?.first_chunk()?))
    }

    fn elements_end(&self) -> u64 {
        (HEADER_LEN + self.count * ELEMENT_LEN) as u64
    }
}

/// A page on the way from the root to the present item.
#[derive(Debug)]
pub(super) struct Frame {
    page: Page,
    /// The element to be visited next.
    next: usize,
    /// Where the bytes of the last element's key or item end.
    data_end: u64,
}

impl Frame {
    fn new(page: Page) -> Self {
        let data_end = page.elements_end();
        Self { page, next: 0, data_end }
    }
}

/// The items of a bucket, ascending. The first error is the last item.
///
/// A key or value given may keep the page it was read with in memory, at most
/// 256 KiB, for as long as it lives.
#[derive(Debug)]
pub struct Iter<'a> {
    reader: &'a Reader,
    /// The flags that every element of this tree has.
    flags: u32,
    /// From the root down to the present leaf.
    pub(super) frames: Vec<Frame>,
    /// Pages that the walk may still read.
    pages_left: u64,
    last_key: Bytes,
    /// The key by which the present page was found: none in it is below.
    floor: Bytes,
}

impl<'a> Iter<'a> {
    fn new(reader: &'a Reader, flags: u32) -> Self {
        let pages_left = reader.meta.high_water;
        let (last_key, floor) = (Bytes::new(), Bytes::new());
        Self { reader, flags, frames: Vec::new(), pages_left, last_key, floor }
    }

    /// Goes down to the page `id`.
    fn descend(&mut self, id: u64) -> Result<(), Error> {
        if self.frames.len() == MAX_DEPTH {
            let text = format!("a tree is more than {MAX_DEPTH} levels deep");
            return Err(self.reader.damaged(text));
        }
        let page = self.reader.page(id)?;
        self.pages_left = self.pages_left.checked_sub(page.own_pages).ok_or_else(|| {
            self.reader.damaged(format!("page {id} is reached in more than one way"))
        })?;
        self.frames.push(Frame::new(page));
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Pair>, Error> {
        while let Some(frame) = self.frames.last_mut() {
            let index = frame.next;
            if index >= frame.page.count {
                self.frames.pop();
                continue;
            }
            frame.next += 1;
            match frame.page.kind {
                Kind::Leaf => return self.item(index).map(Some),
                _ => {
                    let child = self.child(index)?;
                    self.descend(child)?;
                }
            }
        }
        Ok(None)
    }

    /// The child at `index` of the branch that the walk has come to. Its key
    /// lies between the keys below the child before it and those below it.
    fn child(&mut self, index: usize) -> Result<u64, Error> {
        let (at, bytes) = self.element(index)?;
        let element = BranchElement::decode(&bytes);
        let key_len = element.key_len as usize;
        if key_len == 0 || key_len > MAX_KEY_LEN {
            return Err(self.wrong(index, &format!("has a key of {key_len} bytes")));
        }
        let key = self.data(index, at + u64::from(element.pos), key_len)?;
        if key <= self.last_key || key < self.floor {
            return Err(self.wrong(index, "is not above the key before it"));
        }
        self.floor = key;
        Ok(element.child)
    }

    /// The item at `index` of the leaf that the walk has come to.
    fn item(&mut self, index: usize) -> Result<Pair, Error> {
        let (at, bytes) = self.element(index)?;
        let element = LeafElement::decode(&bytes);
        if element.flags != self.flags {
            let what = match (element.flags, self.flags) {
                (BUCKET_FLAG, _) => "is a bucket within a bucket, which etcd never has",
                (0, _) => "is a key outside of any bucket",
                _ => "has unknown flags",
            };
            return Err(self.wrong(index, what));
        }
        let (key_len, value_len) = (element.key_len as usize, element.value_len as usize);
        if key_len == 0 || key_len > MAX_KEY_LEN || value_len > MAX_VALUE_LEN {
            let what = format!("has a key of {key_len} and a value of {value_len} bytes");
            return Err(self.wrong(index, &what));
        }
        let mut key = self.data(index, at + u64::from(element.pos), key_len + value_len)?;
        let value = key.split_off(key_len);
        if key <= self.last_key {
            return Err(self.wrong(index, "is not above the key before it"));
        }
        if key < self.floor {
            return Err(self.wrong(index, "is below the key by which its page is found"));
        }
        self.last_key = key.clone();
        Ok((key, value))
    }

    /// The element at `index` of the present page, and where it stands.
    fn element(&self, index: usize) -> Result<(u64, [u8; ELEMENT_LEN]), Error> {
        let found = self.frames.last().and_then(|frame| frame.page.element(index));
        found.ok_or_else(|| self.wrong(index, "is missing"))
    }

    /// `len` bytes at `start` of the present page, which belong to the element at
    /// `index` and to none before it.
    fn data(&mut self, index: usize, start: u64, len: usize) -> Result<Bytes, Error> {
        let end = start + len as u64;
        match self.frames.last_mut() {
            Some(Frame { page, data_end, .. }) if start >= *data_end && end <= page.len => {
                *data_end = end;
                if end <= page.head.len() as u64 {
                    Ok(page.head.slice(start as usize..end as usize))
                } else {
                    self.reader.read(page.offset + start, len)
                }
            }
            _ => Err(self.wrong(index, "lies outside of the page or within another item")),
        }
    }

    /// The error that the element at `index` of the present page is.
    fn wrong(&self, index: usize, what: &str) -> Error {
        let page = self.frames.last().map_or(0, |frame| frame.page.id);
        self.reader.damaged(format!("item {index} of page {page} {what}"))
    }
}

impl Iterator for Iter<'_> {
    type Item = Result<Pair, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.advance().transpose();
        if matches!(item, Some(Err(_))) {
            self.frames.clear();
        }
        item
    }
}

impl std::iter::FusedIterator for Iter<'_> {}
