use chrono::Utc;
use serde_json::json;

use crate::envelope::Envelope;
use crate::events::*;

fn spot() -> TourSpotUpsert {
    TourSpotUpsert {
        tourspot_id: "42".to_owned(),
        version: 3,
        name: "경복궁".to_owned(),
        address: "서울특별시 종로구 사직로 161".to_owned(),
        lat: 37.5796,
        lng: 126.977,
        image_url: None,
        description: Some("조선 왕조의 법궁".to_owned()),
        phone_number: Some("02-3700-3900".to_owned()),
        tags: vec!["역사".to_owned(), "건축/조형".to_owned()],
    }
}

fn field_at_fault(event: &impl Event) -> Option<&'static str> {
    match event.validate() {
        Ok(()) => None,
        Err(InvalidEvent::Field { field, .. }) => Some(field),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn every_event_goes_out_under_its_type_and_comes_back_the_same() {
    fn round_trip<E: Event + PartialEq + std::fmt::Debug>(event: E, exchange: &str, key: &str) {
        let sent = Outgoing::new(&event, Utc::now());
        assert_eq!(sent.exchange, exchange);
        assert_eq!(sent.routing_key, E::TYPE);
        assert_eq!(sent.envelope.r#type, E::TYPE);
        assert_eq!(sent.ordering_key, key);
        let received = Envelope::decode(&sent.envelope.encode()).unwrap();
        assert_eq!(read::<E>(&received), Ok(event));
    }
    let (user_id, tourspot_id, review_id) =
        ("traveller1".to_owned(), "42".to_owned(), "7".to_owned());
    let anonymous = "anon:ABCDEFG234567".to_owned();
    round_trip(
        ViewTourspot { user_id: anonymous, tourspot_id: tourspot_id.clone() },
        USER_EXCHANGE,
        "anon:ABCDEFG234567",
    );
    round_trip(
        BookmarkTourspot { user_id: user_id.clone(), tourspot_id: tourspot_id.clone() },
        USER_EXCHANGE,
        "traveller1",
    );
    round_trip(
        UnbookmarkTourspot { user_id: user_id.clone(), tourspot_id: tourspot_id.clone() },
        USER_EXCHANGE,
        "traveller1",
    );
    round_trip(
        ReviewTourspot {
            user_id: user_id.clone(),
            tourspot_id: tourspot_id.clone(),
            review_id: review_id.clone(),
        },
        USER_EXCHANGE,
        "traveller1",
    );
    round_trip(
        DeleteReview { user_id: user_id.clone(), tourspot_id: tourspot_id.clone(), review_id },
        USER_EXCHANGE,
        "traveller1",
    );
    round_trip(DeleteUser { user_id }, USER_EXCHANGE, "traveller1");
    round_trip(spot(), TOUR_SPOT_EXCHANGE, "42");
    round_trip(TourSpotDelete { tourspot_id, version: 4 }, TOUR_SPOT_EXCHANGE, "42");
}

#[test]
fn the_payload_of_a_view_is_as_the_contract_says() {
    let view = ViewTourspot { user_id: "traveller1".to_owned(), tourspot_id: "42".to_owned() };
    let sent = Outgoing::new(&view, Utc::now());
    assert_eq!(sent.envelope.r#type, "user.viewTourspot");
    assert_eq!(sent.envelope.data, json!({"user_id": "traveller1", "tourspot_id": "42"}));
}

#[test]
fn users_and_their_ids_are_validated() {
    let long = "a".repeat(65);
    let cases = [
        ("traveller1", "42", None),
        ("anon:abcdefg234567", "42", None),
        ("", "42", Some("user_id")),
        ("anon:", "42", Some("user_id")),
        ("anon:189", "42", Some("user_id")),
        ("192.168.0.1:80", "42", Some("user_id")),
        ("여행자", "42", Some("user_id")),
        (long.as_str(), "42", Some("user_id")),
        ("traveller1", "", Some("tourspot_id")),
        ("traveller1", "-1", Some("tourspot_id")),
        ("traveller1", "+1", Some("tourspot_id")),
        ("traveller1", "9223372036854775807", None),
        ("traveller1", "9223372036854775808", Some("tourspot_id")),
    ];
    for (user_id, tourspot_id, fault) in cases {
        let event =
            ViewTourspot { user_id: user_id.to_owned(), tourspot_id: tourspot_id.to_owned() };
        assert_eq!(field_at_fault(&event), fault, "{event:?}");
    }
    assert!(is_pseudonym("anon:abc") && !is_pseudonym("traveller1"));
}

#[test]
fn a_spot_is_checked_field_by_field() {
    type Change = fn(&mut TourSpotUpsert);
    let cases: [(Change, Option<&str>); 12] = [
        (|_| {}, None),
        (|s| s.tags.clear(), None),
        (|s| s.tourspot_id = "x".to_owned(), Some("tourspot_id")),
        (|s| s.name = "  ".to_owned(), Some("name")),
        (|s| s.name = "가".repeat(limits::NAME_CHARS + 1), Some("name")),
        (|s| s.address = "가".repeat(limits::ADDRESS_CHARS + 1), Some("address")),
        (|s| s.lat = 90.5, Some("lat")),
        (|s| s.lng = f64::NAN, Some("lng")),
        (|s| s.description = Some("가".repeat(limits::DESCRIPTION_CHARS)), None),
        (|s| s.description = Some("가".repeat(limits::DESCRIPTION_CHARS + 1)), Some("description")),
        (|s| s.tags = vec!["역사".to_owned(); limits::TAGS + 1], Some("tags")),
        (|s| s.tags = vec![String::new()], Some("tags")),
    ];
    for (i, (change, fault)) in cases.into_iter().enumerate() {
        let mut spot = spot();
        change(&mut spot);
        assert_eq!(field_at_fault(&spot), fault, "case {i}");
    }
}

#[test]
fn the_largest_sound_spot_fits_what_a_consumer_accepts() {
    // A control character is the worst case of JSON: six bytes for one character.
    let fill = |chars| "\u{1}".repeat(chars);
    let spot = TourSpotUpsert {
        name: format!("a{}", fill(limits::NAME_CHARS - 1)),
        address: fill(limits::ADDRESS_CHARS),
        image_url: Some(fill(limits::IMAGE_URL_CHARS)),
        description: Some(fill(limits::DESCRIPTION_CHARS)),
        phone_number: Some(fill(limits::PHONE_NUMBER_CHARS)),
        tags: vec![fill(limits::TAG_CHARS); limits::TAGS],
        ..spot()
    };
    assert_eq!(spot.validate(), Ok(()));
    let bytes = Outgoing::new(&spot, Utc::now()).envelope.encode().len();
    let accepted = crate::consumer::ConsumerSettings::default().max_body_bytes;
    assert!(bytes < accepted, "{bytes} of {accepted}");
}

#[test]
fn a_payload_of_another_type_or_shape_is_refused_without_quoting_it() {
    let at = Utc::now();
    let other = Envelope::new("user.delete", at, json!({"user_id": "traveller1"}));
    let refused = read::<ViewTourspot>(&other).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "expected an event of type user.viewTourspot, found user.delete"
    );
    let data = json!({"user_id": "traveller1", "tourspot_id": 42});
    let wrong = Envelope::new(ViewTourspot::TYPE, at, data);
    assert_eq!(read::<ViewTourspot>(&wrong), Err(InvalidEvent::Shape(ViewTourspot::TYPE)));
    let data = json!({"user_id": "not a user", "tourspot_id": "42"});
    let unsound = Envelope::new(ViewTourspot::TYPE, at, data);
    let refused = read::<ViewTourspot>(&unsound).unwrap_err();
    assert!(!refused.to_string().contains("not a user"), "{refused}");
}
