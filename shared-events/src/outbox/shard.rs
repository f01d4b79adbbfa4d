//! The shard of an ordering key.

/// A part of the outbox, from 0 to [`SHARDS`] - 1.
pub type Shard = u8;

/// The number of shards of an outbox, and so the most relays that share its work. Each row stores its shard, so another
/// number needs a migration that computes them again.
pub const SHARDS: Shard = 16;

/// All shards.
pub(crate) fn all_shards() -> Vec<Shard> {
    (0..SHARDS).collect()
}

/// The shard of an ordering key.
///
/// ```
/// use tourin_shared_events::outbox::{SHARDS, shard_of};
///
/// assert!(shard_of("hana12345") < SHARDS);
/// assert_eq!(shard_of("hana12345"), shard_of("hana12345"));
/// ```
///
/// FNV-1a over its bytes, mixed as MurmurHash3 finishes, modulo [`SHARDS`]. The same in every version of the program,
/// because the table has rows of older versions.
pub fn shard_of(ordering_key: &str) -> Shard {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in ordering_key.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    u8::try_from(hash % u64::from(SHARDS)).expect("less than the number of shards")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_shard_in_every_version() {
        let shards = ["", "a", "traveller1", "anon:mfrggzdf", "서울"].map(shard_of);
        assert_eq!(shards, GOLDEN);
    }

    const GOLDEN: [Shard; 5] = [6, 11, 0, 14, 14];

    #[test]
    fn keys_spread_over_all_shards() {
        let mut counts = [0_u32; SHARDS as usize];
        for key in 0..16_000 {
            counts[usize::from(shard_of(&format!("user{key}")))] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
