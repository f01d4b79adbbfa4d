//! The ids of spans as text. Each request of the gateway needs them several times, and `Display` writes
//! one digit after the other.

use http::HeaderValue;
use opentelemetry::trace::{SpanContext, TraceId};

/// Characters of a `traceparent`.
const TRACEPARENT_LENGTH: usize = 55;

/// The ids as `VERSION-TRACE-SPAN-FLAGS` (W3C Trace Context). Only the sampled flag is known here.
pub(super) fn traceparent(ids: &SpanContext) -> HeaderValue {
    let mut text = [b'-'; TRACEPARENT_LENGTH];
    write_hex(&[0], &mut text[..2]);
    write_hex(&ids.trace_id().to_bytes(), &mut text[3..35]);
    write_hex(&ids.span_id().to_bytes(), &mut text[36..52]);
    write_hex(&[u8::from(ids.is_sampled())], &mut text[53..]);
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A trace's id as 32 hexadecimal digits.
pub(super) fn trace_text(id: TraceId) -> String {
    let mut text = [0; 32];
    write_hex(&id.to_bytes(), &mut text);
    text.iter().map(|digit| char::from(*digit)).collect()
}

/// Writes two digits for each byte.
fn write_hex(bytes: &[u8], to: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(to.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceFlags, TraceState};

    use super::*;

    #[test]
    fn ids_are_written_as_their_display_has_them() {
        for (trace, span, sampled) in
            [(u128::MAX, 1, true), (0x4bf9_2f35_77b3_4da6_a3ce, 0x00f0_67aa_0ba9_02b7, false)]
        {
            let (trace, span) = (TraceId::from(trace), SpanId::from(span));
            let flags = TraceFlags::default().with_sampled(sampled);
            let ids = SpanContext::new(trace, span, flags, false, TraceState::default());
            let expected = format!("00-{trace}-{span}-{:02x}", u8::from(sampled));
            assert_eq!(traceparent(&ids), expected.as_str());
            assert_eq!(trace_text(trace), trace.to_string());
        }
    }
}
