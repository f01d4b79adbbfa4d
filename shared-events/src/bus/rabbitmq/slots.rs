//! Where a key belongs: to one of a fixed number of slots, for ever.
//!
//! The publisher names the slot of an event's key as a second routing key (in the header `CC`, which RabbitMQ routes by
//! like by the first). Each queue's `slots` exchange hands the slots out to its shards. Nothing in this depends on the
//! order in which anything is declared or restarted, so a key's events never go to another shard than those before.

/// How many there are. Part of what is on the wire between publishers and the bindings of queues: never change it.
pub(super) const SLOTS: usize = 256;

/// One word, so that among topic patterns only `*` (which is refused) could take it for an event's type.
const PREFIX: &str = "slot-";

/// The slot of an ordering key: FNV-1a over its bytes, folded to eight bits. The same in every version and on every
/// machine.
pub(super) fn slot(key: &str) -> usize {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits alone would be a poor hash of keys that are alike.
    let folded = hash ^ (hash >> 32);
    let folded = folded ^ (folded >> 16);
    usize::try_from((folded ^ (folded >> 8)) & 0xff).unwrap_or_default()
}

/// The routing key of a slot.
pub(super) fn routing_key(slot: usize) -> String {
    format!("{PREFIX}{slot}")
}

/// Whether a binding by this pattern would take slots for types.
pub(super) fn is_mistaken_for_a_type(pattern: &str) -> bool {
    pattern == "*" || pattern.starts_with(PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::TopicPattern;

    #[test]
    fn a_key_has_its_slot_for_ever() {
        // Copies of the first release's: another number would tear the order of keys on running meshes.
        let known =
            [("", 225), ("a", 187), ("user1", 201), ("anon:abcdefgh", 118), ("01890a5d-ac96", 167)];
        assert_eq!(known.map(|(key, _)| slot(key)), known.map(|(_, slot)| slot));
    }

    #[test]
    fn keys_that_are_alike_spread() {
        let mut counts = [0_u32; SLOTS];
        for n in 0..25_600 {
            counts[slot(&format!("user{n}"))] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least >= 50 && *most <= 160, "{least} to {most} of 100");
    }

    #[test]
    fn no_pattern_over_types_takes_a_slot_for_one() {
        for pattern in ["user.#", "user.*", "*.delete", "*.*", "#.delete", "tourSpot.upsert"] {
            let takes = TopicPattern::new(pattern).matches(&routing_key(17));
            assert!(!takes && !is_mistaken_for_a_type(pattern), "{pattern}");
        }
        assert!(is_mistaken_for_a_type("*") && is_mistaken_for_a_type(&routing_key(3)));
    }
}
