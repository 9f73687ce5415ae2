//! The bytes of a page: its header, its elements, and the two meta pages.
//!
//! All numbers are little-endian, as on every platform that etcd supports.

use bytes::{Buf, BufMut};

/// Length of a page header.
pub(super) const HEADER_LEN: usize = 16;

/// Length of an element of a branch or a leaf.
pub(super) const ELEMENT_LEN: usize = 16;

/// Length of the header with which the value of a bucket begins: the page of its
/// root (0: the page follows inline) and its sequence.
pub(super) const BUCKET_LEN: usize = 16;

/// Length of a meta page's content after the page header.
pub(super) const META_LEN: usize = 64;

/// The flag of a leaf element whose value is a bucket.
pub(super) const BUCKET_FLAG: u32 = 0x01;

/// The first page that is not a meta page.
pub(super) const FIRST_PAGE: u64 = 2;

/// The page sizes that a file may have: powers of two from the first to the
/// second. bbolt takes the one of the operating system.
pub(super) const PAGE_SIZES: (usize, usize) = (512, 65_536);

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const CHECKED_LEN: usize = META_LEN - 8;

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Keys, each the first one of a page one level below.
    Branch,
    /// Keys and values.
    Leaf,
    /// A [`Meta`].
    Meta,
    /// The pages that are not in use.
    Freelist,
}

impl Kind {
    const fn flags(self) -> u16 {
        match self {
            Self::Branch => 0x01,
            Self::Leaf => 0x02,
            Self::Meta => 0x04,
            Self::Freelist => 0x10,
        }
    }
}

/// The head of every page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// The page's own number.
    pub(super) id: u64,
    /// `None` for flags that no page has.
    pub(super) kind: Option<Kind>,
    /// Elements on the page.
    pub(super) count: u16,
    /// Pages that follow and belong to this one.
    pub(super) overflow: u32,
}

impl Header {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.put_u64_le(self.id);
        bytes.put_u16_le(self.kind.map_or(0, Kind::flags));
        bytes.put_u16_le(self.count);
        bytes.put_u32_le(self.overflow);
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut bytes = &bytes[..];
        let id = bytes.get_u64_le();
        let flags = bytes.get_u16_le();
        let kinds = [Kind::Branch, Kind::Leaf, Kind::Meta, Kind::Freelist];
        let kind = kinds.into_iter().find(|kind| kind.flags() == flags);
        Self { id, kind, count: bytes.get_u16_le(), overflow: bytes.get_u32_le() }
    }
}

/// An element of a leaf: where its key is, directly followed by its value.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeafElement {
    /// [`BUCKET_FLAG`] or 0.
    pub(super) flags: u32,
    /// From the element's own first byte to the key.
    pub(super) pos: u32,
    /// Length of the key.
    pub(super) key_len: u32,
    /// Length of the value.
    pub(super) value_len: u32,
}

impl LeafElement {
    pub(super) fn encode(self, page: &mut Vec<u8>) {
        page.put_u32_le(self.flags);
        page.put_u32_le(self.pos);
        page.put_u32_le(self.key_len);
        page.put_u32_le(self.value_len);
    }

    pub(super) fn decode(bytes: &[u8; ELEMENT_LEN]) -> Self {
        let mut bytes = &bytes[..];
        Self {
            flags: bytes.get_u32_le(),
            pos: bytes.get_u32_le(),
            key_len: bytes.get_u32_le(),
            value_len: bytes.get_u32_le(),
        }
    }
}

/// An element of a branch: where its key is, and the page that begins with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct BranchElement {
    /// From the element's own first byte to the key.
    pub(super) pos: u32,
    /// Length of the key.
    pub(super) key_len: u32,
    /// The page one level below.
    pub(super) child: u64,
}

impl BranchElement {
    pub(super) fn encode(self, page: &mut Vec<u8>) {
        page.put_u32_le(self.pos);
        page.put_u32_le(self.key_len);
        page.put_u64_le(self.child);
    }

    pub(super) fn decode(bytes: &[u8; ELEMENT_LEN]) -> Self {
        let mut bytes = &bytes[..];
        Self { pos: bytes.get_u32_le(), key_len: bytes.get_u32_le(), child: bytes.get_u64_le() }
    }
}

/// The value of a bucket's element, up to an inline page.
#[derive(Debug, Clone, Copy)]
pub(super) struct BucketHeader {
    /// The page of the bucket's root, 0 for one that follows inline.
    pub(super) root: u64,
}

impl BucketHeader {
    /// With the sequence 0: etcd never counts with it.
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BUCKET_LEN);
        bytes.put_u64_le(self.root);
        bytes.put_u64_le(0);
        bytes
    }

    pub(super) fn decode(bytes: &[u8; BUCKET_LEN]) -> Self {
        Self { root: (&bytes[..]).get_u64_le() }
    }
}

/// What a meta page says of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// Bytes per page.
    pub(super) page_size: u32,
    /// The root page of the tree of buckets.
    pub(super) root: u64,
    /// The page of the freelist.
    pub(super) freelist: u64,
    /// The first page that has never been in use: the file has this many.
    pub(super) high_water: u64,
    /// The transaction that wrote this page. Of two valid ones the higher holds.
    pub(super) txid: u64,
}

impl Meta {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(META_LEN);
        bytes.put_u32_le(MAGIC);
        bytes.put_u32_le(VERSION);
        bytes.put_u32_le(self.page_size);
        bytes.put_u32_le(0);
        bytes.put_slice(&BucketHeader { root: self.root }.encode());
        bytes.put_u64_le(self.freelist);
        bytes.put_u64_le(self.high_water);
        bytes.put_u64_le(self.txid);
        let checksum = fnv1a(&bytes);
        bytes.put_u64_le(checksum);
        bytes
    }

    /// The meta in these bytes, or why there is none.
    pub(super) fn decode(bytes: &[u8; META_LEN]) -> Result<Self, &'static str> {
        let checksum = fnv1a(&bytes[..CHECKED_LEN]);
        let mut bytes = &bytes[..];
        if bytes.get_u32_le() != MAGIC {
            return Err("it does not begin as a database of bbolt");
        }
        if bytes.get_u32_le() != VERSION {
            return Err("its version is not 2");
        }
        let page_size = bytes.get_u32_le();
        let _flags = bytes.get_u32_le();
        let root = bytes.get_u64_le();
        let _sequence = bytes.get_u64_le();
        let (freelist, high_water) = (bytes.get_u64_le(), bytes.get_u64_le());
        let meta = Self { page_size, root, freelist, high_water, txid: bytes.get_u64_le() };
        if bytes.get_u64_le() != checksum {
            return Err("the checksum of its meta page is wrong");
        }
        let size = page_size as usize;
        if !size.is_power_of_two() || size < PAGE_SIZES.0 || size > PAGE_SIZES.1 {
            return Err("its page size is none that bbolt uses");
        }
        Ok(meta)
    }
}

/// The 64-bit FNV-1a hash.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_gives_the_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_meta_with_any_bit_flipped_is_refused() {
        let meta = Meta { page_size: 4096, root: 7, freelist: 8, high_water: 9, txid: 1 };
        let bytes: [u8; META_LEN] = meta.encode().try_into().unwrap();
        assert_eq!(Meta::decode(&bytes), Ok(meta));
        for bit in 0..META_LEN * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::decode(&damaged).is_err(), "bit {bit}");
        }
    }
}
