//! WebSocket handshakes, and the boundaries of frames (RFC 6455).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use tourin_chassis::http::fields;

use crate::messages;
use crate::responses::{Response, WEBSOCKET_VERSION};

const KEY_BYTES: usize = 16;

/// Checks a handshake (RFC 6455, 4.2.1). `is_http1` says whether the connection can be upgraded at all.
///
/// # Errors
/// 426 for another request or another version, 400 for a malformed key.
pub fn check_handshake(request: &RequestHeader, is_http1: bool) -> Result<(), Response> {
    let headers = &request.headers;
    let asks = request.method == Method::GET
        && is_http1
        && request.version == Version::HTTP_11
        && only(headers, &UPGRADE).is_some_and(|name| name.eq_ignore_ascii_case(b"websocket"))
        && fields::has_token(headers, &CONNECTION, "upgrade");
    if !asks {
        return Err(Response::upgrade_required(messages::websocket_needed()));
    }
    if only(headers, &SEC_WEBSOCKET_VERSION) != Some(WEBSOCKET_VERSION.as_bytes()) {
        return Err(Response::upgrade_required(messages::websocket_version()));
    }
    let key = only(headers, &SEC_WEBSOCKET_KEY).and_then(|key| STANDARD.decode(key).ok());
    if key.is_none_or(|key| key.len() != KEY_BYTES) {
        return Err(Response::malformed(messages::websocket_key()));
    }
    Ok(())
}

/// The value of a field that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    Some(value.as_bytes().trim_ascii())
}

/// Adds the fields that ask a service for the upgrade; they were removed as hop-by-hop ones.
///
/// # Errors
/// Pingora's, which the headers set here do not cause.
pub fn ask(request: &mut RequestHeader) -> pingora::Result<()> {
    request.insert_header(CONNECTION, "Upgrade")?;
    request.insert_header(UPGRADE, "websocket")
}

/// Adds the fields that tell a client of the upgrade.
///
/// # Errors
/// Pingora's, which the headers set here do not cause.
pub fn confirm(response: &mut ResponseHeader) -> pingora::Result<()> {
    response.insert_header(CONNECTION, "Upgrade")?;
    response.insert_header(UPGRADE, "websocket")
}

/// A Close frame from a server.
pub fn close_frame(status: u16) -> Bytes {
    let [high, low] = status.to_be_bytes();
    Bytes::copy_from_slice(&[0x88, 2, high, low])
}

/// Follows the frames in what is sent to the client, from the response's head on: only between two
/// frames another one may be sent. Of a frame only its length is read.
#[derive(Debug, Clone, Copy)]
pub struct FrameBoundary {
    part: Part,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    /// The response's head; so many bytes of its end have been seen.
    Head(usize),
    /// A frame's own head: so many bytes of it, of which these are the first ones.
    FrameHead { seen: usize, bytes: [u8; 14] },
    /// So many bytes of the frame are missing.
    Payload(u64),
}

const HEAD_END: &[u8] = b"\r\n\r\n";
const NEW_FRAME: Part = Part::FrameHead { seen: 0, bytes: [0; 14] };

impl Default for FrameBoundary {
    fn default() -> Self {
        Self { part: Part::Head(0) }
    }
}

impl FrameBoundary {
    /// Whether no frame has begun that has not ended.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.part, Part::FrameHead { seen: 0, .. })
    }

    /// Takes note of bytes that were sent.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.step(bytes);
            bytes = &bytes[taken..];
        }
    }

    /// How many of these bytes belong to the frame that has begun; 0 between frames.
    pub fn rest_of_frame(&self, bytes: &[u8]) -> usize {
        let mut ahead = *self;
        let mut taken = 0;
        while taken < bytes.len() && !ahead.is_between_frames() {
            taken += ahead.step(&bytes[taken..]);
        }
        taken
    }

    /// Takes at least one byte, and no byte of the next part.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match &mut self.part {
            Part::Head(matched) => {
                *matched = match bytes[0] {
                    byte if byte == HEAD_END[*matched] => *matched + 1,
                    b'\r' => 1,
                    _ => 0,
                };
                if *matched == HEAD_END.len() {
                    self.part = NEW_FRAME;
                }
                1
            }
            Part::FrameHead { seen, bytes: head } => {
                head[*seen] = bytes[0];
                *seen += 1;
                if *seen >= 2 && *seen == head_length(head[1]) {
                    let length = payload_length(head);
                    self.part = if length == 0 { NEW_FRAME } else { Part::Payload(length) };
                }
                1
            }
            Part::Payload(missing) => {
                let taken = usize::try_from(*missing).map_or(bytes.len(), |n| n.min(bytes.len()));
                *missing -= taken as u64;
                if *missing == 0 {
                    self.part = NEW_FRAME;
                }
                taken
            }
        }
    }
}

/// The length of a frame's head, by its second byte.
fn head_length(second: u8) -> usize {
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    2 + extended + mask
}

fn payload_length(head: &[u8; 14]) -> u64 {
    match head[1] & 0x7f {
        126 => u64::from(u16::from_be_bytes([head[2], head[3]])),
        127 => u64::from_be_bytes([
            head[2], head[3], head[4], head[5], head[6], head[7], head[8], head[9],
        ]),
        length => u64::from(length),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handshake(change: impl FnOnce(&mut RequestHeader)) -> Result<(), u16> {
        let mut request = RequestHeader::build("GET", b"/live", None).unwrap();
        for (name, value) in [
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "WebSocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            request.append_header(name, value).unwrap();
        }
        change(&mut request);
        check_handshake(&request, true).map_err(|response| response.status.as_u16())
    }

    #[test]
    fn a_handshake_is_checked_strictly() {
        assert_eq!(handshake(|_| {}), Ok(()));
        let set = |name: &'static str, value: &'static str| {
            handshake(|request| request.insert_header(name, value).unwrap())
        };
        assert_eq!(set("Upgrade", "h2c"), Err(426));
        assert_eq!(set("Upgrade", "websocket, h2c"), Err(426));
        assert_eq!(set("Connection", "keep-alive"), Err(426));
        assert_eq!(set("Sec-WebSocket-Version", "8"), Err(426));
        assert_eq!(set("Sec-WebSocket-Version", "13, 8"), Err(426));
        for key in ["", "short", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZTE=", "한"] {
            assert_eq!(set("Sec-WebSocket-Key", key), Err(400), "{key}");
        }
        for name in ["Upgrade", "Sec-WebSocket-Version"] {
            assert_eq!(handshake(|r| drop(r.remove_header(name))), Err(426), "{name}");
        }
        let twice = |name: &'static str| {
            let value = "dGhlIHNhbXBsZSBub25jZQ==";
            handshake(|request| {
                request.append_header(name, value).unwrap();
            })
        };
        assert_eq!(twice("Sec-WebSocket-Key"), Err(400));
        assert_eq!(twice("Upgrade"), Err(426));
        assert_eq!(handshake(|request| request.set_method(Method::POST)), Err(426));
        assert_eq!(handshake(|request| request.set_version(Version::HTTP_10)), Err(426));
        let request = RequestHeader::build("GET", b"/live", None).unwrap();
        assert!(check_handshake(&request, false).is_err());
    }

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match length {
            0..126 => frame.push(mask | u8::try_from(length).unwrap()),
            126..65_536 => {
                frame.push(mask | 126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(if masked { &[1, 2, 3, 4][..] } else { &[] });
        frame.extend(std::iter::repeat_n(0x88, length));
        frame
    }

    proptest! {
        /// However the bytes are cut, the boundary is where a frame ends, and there alone.
        #[test]
        fn boundaries_do_not_depend_on_how_the_bytes_come(
            lengths in proptest::collection::vec((0_usize..300, any::<bool>()), 1..5),
            large in proptest::option::of(65_530_usize..65_540),
            cut in 1_usize..50,
        ) {
            let mut wire = b"HTTP/1.1 101 Switching\r\nA: \r\r\n\r\n".to_vec();
            let mut ends = vec![wire.len()];
            let large = large.map(|length| (length, false));
            for (length, masked) in lengths.into_iter().chain(large) {
                wire.extend(frame(length, masked));
                ends.push(wire.len());
            }
            let mut boundary = FrameBoundary::default();
            let mut at = 0;
            for piece in wire.chunks(cut) {
                let next_end = ends.iter().find(|end| **end >= at).copied().unwrap_or(wire.len());
                prop_assert_eq!(boundary.rest_of_frame(piece), piece.len().min(next_end - at));
                boundary.pass(piece);
                at += piece.len();
                prop_assert_eq!(boundary.is_between_frames(), ends.contains(&at), "at {}", at);
            }
        }
    }
}
