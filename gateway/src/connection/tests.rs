use proptest::prelude::*;

use super::*;

#[test]
fn a_heads_end_is_seen() {
    for complete in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n\r\nbody",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\nHost: h\n\n",
    ] {
        let rest = if complete.ends_with("body") { 4 } else { 0 };
        let fed = Head::default().feed(complete.as_bytes(), 100);
        assert_eq!(fed, HeadProgress::Complete { rest }, "{complete:?}");
    }
    for incomplete in ["", "\r\n\r\n", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r"] {
        assert_eq!(
            Head::default().feed(incomplete.as_bytes(), 100),
            HeadProgress::Incomplete,
            "{incomplete:?}"
        );
    }
    let long = "a".repeat(101);
    assert_eq!(
        Head::default().feed(long.as_bytes(), 100),
        HeadProgress::TooLarge { in_target: true }
    );
    let long = format!("GET / HTTP/1.1\r\nA: {long}");
    assert_eq!(
        Head::default().feed(long.as_bytes(), 100),
        HeadProgress::TooLarge { in_target: false }
    );
}

proptest! {
    #[test]
    fn it_does_not_matter_how_a_head_is_cut(cuts in proptest::collection::vec(1_usize..20, 1..20)) {
        let head = b"GET /some/path?x=1 HTTP/1.1\r\nHost: tourin.example\r\nAccept: */*\r\n\r\n";
        let mut state = Head::default();
        let mut at = 0;
        for cut in cuts {
            let end = (at + cut).min(head.len());
            let fed = state.feed(&head[at..end], 1_000);
            at = end;
            prop_assert_eq!(fed == HeadProgress::Complete { rest: 0 }, at == head.len());
            if at == head.len() { break; }
        }
    }
}
