//! Bookmarks and views.

use serde_json::json;

use super::*;
use crate::app::bookmarks::{Bookmarks, Placed, Removed, unbookmarked};
use crate::app::views::{RecordedViews, View, ViewPolicy};
use tourin_chassis::clock::ManualClock;

fn use_cases(stores: &Stores) -> (Bookmarks, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(at(0)));
    (Bookmarks::new(stores.bookmarks.clone(), clock.clone()), clock)
}

pub(super) async fn a_bookmark_commits_with_its_event_once(stores: Stores) {
    stores.sign_up(HANA).await;
    stores.add(&[draft(1, raw("경복궁", "서울"))]).await;
    let (bookmarks, _) = use_cases(&stores);
    let spot = SpotId::new(1);
    let Placed::Placed(bookmark) = bookmarks.place(HANA, spot).await.unwrap() else {
        panic!("the bookmark is new");
    };
    assert_eq!(bookmark.spot.content.name(), "경복궁");
    let again = bookmarks.place(HANA, spot).await.unwrap();
    assert_eq!(again, Placed::AlreadyThere(bookmark.clone()));
    assert_eq!(bookmarks.find(HANA, spot).await.unwrap(), Some(bookmark));
    assert_eq!(bookmarks.remove(HANA, spot).await.unwrap(), Removed::Removed);
    assert_eq!(bookmarks.remove(HANA, spot).await.unwrap(), Removed::NotThere);
    assert_eq!(bookmarks.find(HANA, spot).await.unwrap(), None);
    let data = json!({"user_id": HANA, "tourspot_id": "1"});
    assert_eq!(
        stores.events_of_users().await,
        [
            ("user.bookmarkTourspot".to_owned(), data.clone()),
            ("user.unbookmarkTourspot".to_owned(), data),
        ]
    );
}

pub(super) async fn of_many_who_place_one_bookmark_at_once_one_makes_an_event(stores: Stores) {
    stores.sign_up(HANA).await;
    stores.add(&[draft(1, raw("경복궁", "서울"))]).await;
    let (bookmarks, _) = use_cases(&stores);
    let tries: Vec<_> = (0..16)
        .map(|_| {
            let bookmarks = bookmarks.clone();
            tokio::spawn(async move { bookmarks.place(HANA, SpotId::new(1)).await.unwrap() })
        })
        .collect();
    let mut placed = 0;
    for attempt in tries {
        placed += usize::from(matches!(attempt.await.unwrap(), Placed::Placed(_)));
    }
    assert_eq!(placed, 1);
    assert_eq!(stores.events_of_users().await.len(), 1);
}

pub(super) async fn the_newest_bookmark_is_first_on_pages_without_gaps(stores: Stores) {
    stores.sign_up(HANA).await;
    stores.sign_up(DULI).await;
    let drafts: Vec<_> = (1..=25).map(|id| draft(id, raw("같은 이름", "서울"))).collect();
    stores.add(&drafts).await;
    let (bookmarks, clock) = use_cases(&stores);
    for id in 1..=25 {
        // Pairs with equal times, to test ties.
        if id % 2 == 0 {
            clock.advance(TimeDelta::microseconds(1));
        }
        bookmarks.place(HANA, SpotId::new(id)).await.unwrap();
    }
    bookmarks.place(DULI, SpotId::new(3)).await.unwrap();
    let mut listed = Vec::new();
    for number in 1..=4 {
        let page = bookmarks.page(HANA, page(number, 10)).await.unwrap().unwrap();
        assert_eq!((page.total, page.pages()), (25, 3));
        listed.extend(page.items.iter().map(|bookmark| bookmark.spot.id.number()));
    }
    assert_eq!(listed, (1..=25).rev().collect::<Vec<_>>());
}

pub(super) async fn a_bookmark_needs_a_member_and_a_spot(stores: Stores) {
    stores.sign_up(HANA).await;
    let (bookmarks, _) = use_cases(&stores);
    let spot = SpotId::new(404);
    assert_eq!(bookmarks.place(HANA, spot).await.unwrap(), Placed::NoSuchSpot);
    assert_eq!(bookmarks.place(STRANGER, spot).await.unwrap(), Placed::NoSuchMember);
    assert_eq!(bookmarks.remove(STRANGER, spot).await.unwrap(), Removed::NoSuchMember);
    assert_eq!(bookmarks.page(STRANGER, page(1, 10)).await.unwrap(), None);
    assert_eq!(stores.events_of_users().await, []);
    // Without a bookmark, the removal's event is not appended.
    let event = unbookmarked(HANA, spot, at(0));
    assert_eq!(stores.bookmarks.remove(HANA, spot, at(0), event).await.unwrap(), Removed::NotThere);
    assert_eq!(stores.events_of_users().await, []);
}

pub(super) async fn views_of_members_who_are_gone_are_left_out(stores: Stores) {
    stores.sign_up(HANA).await;
    let view = |user: &str, spot| View {
        user_id: user.to_owned(),
        spot: SpotId::new(spot),
        at: at(spot),
        trace: Default::default(),
    };
    let views = [view(HANA, 1), view(STRANGER, 2), view("anon:abc234", 3), view(HANA, 4)];
    let policy = ViewPolicy::default();
    stores.views.record(&views, &policy).await.unwrap();
    stores.views.record(&[], &policy).await.unwrap();
    let seen: Vec<_> = stores.events_of_users().await;
    assert!(seen.iter().all(|(kind, _)| kind == "user.viewTourspot"));
    let who: Vec<_> = seen
        .iter()
        .map(|(_, data)| (data["user_id"].as_str().unwrap(), data["tourspot_id"].as_str().unwrap()))
        .collect();
    assert_eq!(who, [(HANA, "1"), ("anon:abc234", "3"), (HANA, "4")]);
}

pub(super) async fn views_are_shed_before_writes_are_refused(stores: Stores) {
    stores.sign_up(HANA).await;
    let spots: Vec<_> = (1..=4).map(|id| draft(id, raw("곳", "길 1"))).collect();
    stores.add(&spots).await;
    let view = View {
        user_id: "anon:abc234".to_owned(),
        spot: SpotId::new(1),
        at: at(1),
        trace: Default::default(),
    };
    let record = |max_pending| {
        let policy = ViewPolicy { max_pending, ..ViewPolicy::default() };
        let (views, view) = (stores.views.clone(), view.clone());
        async move { views.record(&[view], &policy).await.unwrap() }
    };
    assert_eq!(record(5).await, RecordedViews::Committed, "four events of spots wait");
    assert_eq!(record(5).await, RecordedViews::Shed);
    assert_eq!(stores.events_of_users().await.len(), 1);
    let (bookmarks, _) = use_cases(&stores);
    let placed = bookmarks.place(HANA, SpotId::new(1)).await.unwrap();
    assert!(matches!(placed, Placed::Placed(_)), "a write is taken meanwhile");
}
