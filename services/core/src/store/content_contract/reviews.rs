//! Reviews, likes, and the erasure of a member.

use serde_json::json;
use tourin_chassis::clock::ManualClock;

use super::*;
use crate::app::bookmarks::Bookmarks;
use crate::app::reviews::{Deleted, Liked, Reviews, Written};
use crate::domain::review::{Review, ReviewContent, ReviewId};

const SPOT: SpotId = SpotId::new(1);

async fn use_cases(stores: &Stores) -> (Reviews, Arc<ManualClock>) {
    stores.sign_up(HANA).await;
    stores.sign_up(DULI).await;
    stores.add(&[draft(1, raw("경복궁", "서울"))]).await;
    let clock = Arc::new(ManualClock::new(at(0)));
    (Reviews::new(stores.reviews.clone(), clock.clone()), clock)
}

async fn write(reviews: &Reviews, member: &str, text: &str) -> Review {
    let content = ReviewContent::new(text).unwrap();
    match reviews.write(member, SPOT, &content).await.unwrap() {
        Written::Written(review) => review,
        other => panic!("not written: {other:?}"),
    }
}

async fn all(reviews: &Reviews) -> Vec<Review> {
    reviews.page(SPOT, page(1, 100)).await.unwrap().unwrap().items
}

pub(super) async fn a_review_commits_with_its_event(stores: Stores) {
    let (reviews, _) = use_cases(&stores).await;
    let review = write(&reviews, HANA, " 좋아요\n").await;
    assert_eq!((review.content.as_str(), review.like_count), (" 좋아요\n", 0));
    assert_eq!(all(&reviews).await, std::slice::from_ref(&review));
    let content = ReviewContent::new("좋아요").unwrap();
    let nowhere = reviews.write(HANA, SpotId::new(404), &content).await.unwrap();
    assert_eq!(nowhere, Written::NoSuchSpot);
    assert_eq!(reviews.write(STRANGER, SPOT, &content).await.unwrap(), Written::NoSuchMember);
    assert_eq!(reviews.page(SpotId::new(404), page(1, 1)).await.unwrap(), None);
    let data = json!({"user_id": HANA, "tourspot_id": "1", "review_id": review.id.to_string()});
    assert_eq!(stores.events_of_users().await, [("user.reviewTourspot".to_owned(), data)]);
}

pub(super) async fn only_the_author_deletes_a_review_and_its_likes_go_with_it(stores: Stores) {
    let (reviews, _) = use_cases(&stores).await;
    let review = write(&reviews, HANA, "좋아요").await.id;
    reviews.like(DULI, review, true).await.unwrap();
    assert_eq!(reviews.delete(DULI, review).await.unwrap(), Deleted::NotYours);
    assert_eq!(reviews.delete(STRANGER, review).await.unwrap(), Deleted::NoSuchMember);
    assert_eq!(reviews.delete(HANA, review).await.unwrap(), Deleted::Deleted);
    assert_eq!(reviews.delete(HANA, review).await.unwrap(), Deleted::NotThere);
    assert_eq!(all(&reviews).await, []);
    assert_eq!(reviews.likes(DULI, &[review]).await.unwrap(), Some(vec![false]));
    let events = stores.events_of_users().await;
    assert_eq!(events.last().unwrap().0, "user.deleteReview");
    assert_eq!(events.len(), 2);
    assert_ne!(write(&reviews, HANA, "다시").await.id, review, "an id is given once");
}

pub(super) async fn a_like_counts_once_per_member(stores: Stores) {
    let (reviews, _) = use_cases(&stores).await;
    let one = write(&reviews, HANA, "하나").await.id;
    let two = write(&reviews, HANA, "둘").await.id;
    for (member, liked, count) in
        [(DULI, true, 1), (DULI, true, 1), (HANA, true, 2), (DULI, false, 1), (DULI, false, 1)]
    {
        let before = all(&reviews).await[1].like_count;
        let expected = if count == before { Liked::Unchanged } else { Liked::Changed(SPOT) };
        assert_eq!(reviews.like(member, one, liked).await.unwrap(), expected);
        assert_eq!(all(&reviews).await[1].like_count, count);
    }
    let unknown = ReviewId::new(404);
    assert_eq!(reviews.like(HANA, unknown, true).await.unwrap(), Liked::NoSuchReview);
    assert_eq!(reviews.like(STRANGER, one, true).await.unwrap(), Liked::NoSuchMember);
    let asked = [two, one, unknown, one];
    let likes = reviews.likes(HANA, &asked).await.unwrap();
    assert_eq!(likes, Some(vec![false, true, false, true]), "in the order asked");
    assert_eq!(reviews.likes(STRANGER, &asked).await.unwrap(), None);
    assert_eq!(stores.events_of_users().await.len(), 2, "likes have no events");
}

pub(super) async fn the_newest_review_is_first(stores: Stores) {
    let (reviews, clock) = use_cases(&stores).await;
    let mut written = Vec::new();
    for number in 0..7 {
        if number % 2 == 0 {
            clock.advance(TimeDelta::seconds(1));
        }
        written.push(write(&reviews, HANA, &format!("{number}")).await.id);
    }
    written.reverse();
    let mut listed = Vec::new();
    for number in 1..=3 {
        let page = reviews.page(SPOT, page(number, 3)).await.unwrap().unwrap();
        assert_eq!(page.total, 7);
        listed.extend(page.items.iter().map(|review| review.id));
    }
    assert_eq!(listed, written);
}

pub(super) async fn deleting_a_member_deletes_all_their_data(stores: Stores) {
    let (reviews, clock) = use_cases(&stores).await;
    let bookmarks = Bookmarks::new(stores.bookmarks.clone(), clock);
    bookmarks.place(HANA, SPOT).await.unwrap();
    bookmarks.place(DULI, SPOT).await.unwrap();
    let hers = write(&reviews, HANA, "하나의 것").await.id;
    let his = write(&reviews, DULI, "둘리의 것").await.id;
    reviews.like(DULI, hers, true).await.unwrap();
    reviews.like(HANA, his, true).await.unwrap();
    reviews.like(DULI, his, true).await.unwrap();
    let before = stores.events_of_users().await.len();

    let hana = MemberId::parse(HANA).unwrap();
    stores.accounts.delete(&hana, at(1_000), at(3)).await.unwrap().unwrap();

    assert_eq!(bookmarks.find(HANA, SPOT).await.unwrap(), None);
    assert!(bookmarks.find(DULI, SPOT).await.unwrap().is_some());
    let left = all(&reviews).await;
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].id, left[0].like_count), (his, 1), "her like is gone, his own stays");
    assert_eq!(reviews.likes(DULI, &[hers, his]).await.unwrap(), Some(vec![false, true]));
    let events: Vec<_> = stores.events_of_users().await.split_off(before);
    let kinds: Vec<_> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["user.unbookmarkTourspot", "user.deleteReview", "user.delete"]);
    assert!(events.iter().all(|(_, data)| data["user_id"] == HANA));
}
