//! zlib-ng's interface over zlib-rs.
//!
//! Pingora asks flate2 for zlib-ng, whose build needs cmake; that cannot be turned off. zlib-rs is
//! the same library in Rust with the same C interface, so `[patch.crates-io]` puts this crate in
//! zlib-ng's place. Tourin itself compresses nothing. It goes when Pingora lets the backend be
//! chosen.
//!
//! The one difference is the type of two fields: zlib-ng's binding has plain function pointers where
//! zlib-rs has optional ones. Hence a stream type of our own and functions that cast, which is the
//! only unsafe code here.

#![allow(non_camel_case_types, non_snake_case, reason = "the names are zlib's")]
#![allow(
    clippy::missing_safety_doc,
    reason = "each has the contract of zlib's function of its name"
)]

use std::ffi::{c_char, c_int, c_ulong};

// What is defined below takes the place of its namesake.
pub use libz_rs_sys::*;

/// `libz_rs_sys::z_stream`, field by field; a function pointer and an optional one have one layout.
#[repr(C)]
pub struct z_stream {
    pub next_in: *const Bytef,
    pub avail_in: uInt,
    pub total_in: c_ulong,
    pub next_out: *mut Bytef,
    pub avail_out: uInt,
    pub total_out: c_ulong,
    pub msg: *mut c_char,
    pub state: *mut internal_state,
    pub zalloc: alloc_func,
    pub zfree: free_func,
    pub opaque: voidpf,
    pub data_type: c_int,
    pub adler: c_ulong,
    pub reserved: uLong,
}

const _: () = {
    assert!(size_of::<z_stream>() == size_of::<libz_rs_sys::z_stream>());
    assert!(align_of::<z_stream>() == align_of::<libz_rs_sys::z_stream>());
};

macro_rules! over_the_same_stream {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        pub unsafe extern "C" fn $name(stream: *mut z_stream, $($argument: $type),*) -> c_int {
            // SAFETY: the two types have one layout, and the caller keeps zlib's contract.
            unsafe { libz_rs_sys::$name(stream.cast(), $($argument),*) }
        }
    )*};
}

over_the_same_stream! {
    deflate(flush: c_int);
    deflateEnd();
    deflateInit2_(
        level: c_int, method: c_int, window_bits: c_int, memory_level: c_int, strategy: c_int,
        version: *const c_char, stream_size: c_int
    );
    deflateParams(level: c_int, strategy: c_int);
    deflateReset();
    deflateSetDictionary(dictionary: *const Bytef, length: uInt);
    inflate(flush: c_int);
    inflateEnd();
    inflateInit2_(window_bits: c_int, version: *const c_char, stream_size: c_int);
    inflateReset();
    inflateReset2(window_bits: c_int);
    inflateSetDictionary(dictionary: *const Bytef, length: uInt);
}
