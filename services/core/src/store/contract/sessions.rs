//! Sessions and the revocation log.

use super::*;
use crate::app::accounts::PasswordChange;
use crate::app::session_store::Rotation;
use crate::domain::session::SessionTimes;
use crate::domain::token::Salt;

pub(super) async fn a_session_shows_its_own_member_only(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let minsu = sign_up(&store, "minsu1234").await;
    let session = log_in(&store, &hana, &policy, at(1)).await;
    let account = store.account(&hana.account.id, session.id, &policy, at(2)).await.unwrap();
    assert_eq!(account, Some(hana.account));
    assert!(!is_open(&store, &minsu.account.id, session.id, at(2)).await);
    assert!(!is_open(&store, &minsu.account.id, SessionId::new(), at(2)).await);
}

pub(super) async fn the_oldest_session_makes_room_for_the_newest(store: impl Ports) {
    let policy = SessionPolicy { per_member: 3, ..SessionPolicy::default() };
    let hana = sign_up(&store, "hana12345").await;
    let mut open = Vec::new();
    for n in 0..3 {
        let session = log_in(&store, &hana, &policy, at(n)).await;
        assert_eq!(session.ended, []);
        open.push(session.id);
    }
    let fourth = log_in(&store, &hana, &policy, at(3)).await;
    assert_eq!(fourth.ended, [open[0]]);
    assert_eq!(revoked(&store, at(4)).await, [open[0]]);
    assert!(!is_open(&store, &hana.account.id, open[0], at(4)).await);
    assert!(is_open(&store, &hana.account.id, open[1], at(4)).await);
    assert!(is_open(&store, &hana.account.id, fourth.id, at(4)).await);
}

pub(super) async fn logging_in_renews_an_outdated_hash(store: impl Ports) {
    let hana = sign_up(&store, "hana12345").await;
    let open = OpenSession {
        member: hana.account.id.clone(),
        session: SessionId::new(),
        token: RefreshToken::random().unwrap().hash(),
        verified: hana.hash.clone(),
        rehashed: Some(PasswordHash("fresh".to_owned())),
        now: at(1),
    };
    let opened = store.open(open, &SessionPolicy::default()).await.unwrap();
    assert_eq!(opened, Opened::Open { ended: vec![] });
    let known = store.credentials(&hana.account.id).await.unwrap().unwrap();
    assert_eq!(known, Credentials { hash: PasswordHash("fresh".to_owned()), ..hana });
}

pub(super) async fn ending_a_session_is_logged_even_when_it_was_over(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &policy, at(1)).await;
    let other = log_in(&store, &hana, &policy, at(2)).await;
    for _ in 0..2 {
        let ended = store.end(&hana.account.id, session.id, false, at(1_000)).await.unwrap();
        assert_eq!(ended, [session.id]);
    }
    assert!(!is_open(&store, &hana.account.id, session.id, at(3)).await);
    assert!(is_open(&store, &hana.account.id, other.id, at(3)).await);
    assert_eq!(revoked(&store, at(3)).await, [session.id, session.id]);
    let rotation = rotate(&store, &session.token, &policy, at(3)).await;
    assert_eq!(rotation, Rotation::Unknown);
}

pub(super) async fn ending_sessions_everywhere_ends_the_members_only(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let minsu = sign_up(&store, "minsu1234").await;
    let mut of_hana = Vec::new();
    for n in 0..3 {
        of_hana.push(log_in(&store, &hana, &policy, at(n)).await.id);
    }
    let of_minsu = log_in(&store, &minsu, &policy, at(4)).await.id;
    let mut ended = store.end(&hana.account.id, of_hana[1], true, at(1_000)).await.unwrap();
    assert_eq!(ended[0], of_hana[1]);
    ended.sort();
    of_hana.sort();
    assert_eq!(ended, of_hana);
    assert!(is_open(&store, &minsu.account.id, of_minsu, at(5)).await);
}

pub(super) async fn a_session_that_has_ended_ends_no_other(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let minsu = sign_up(&store, "minsu1234").await;
    let ended = log_in(&store, &hana, &policy, at(1)).await;
    let open = log_in(&store, &hana, &policy, at(2)).await;
    let of_minsu = log_in(&store, &minsu, &policy, at(3)).await;
    store.end(&hana.account.id, ended.id, false, at(1_000)).await.unwrap();
    for session in [ended.id, SessionId::new()] {
        let alone = store.end(&hana.account.id, session, true, at(1_000)).await.unwrap();
        assert_eq!(alone, [session]);
    }
    assert!(is_open(&store, &hana.account.id, open.id, at(4)).await);
    assert!(is_open(&store, &minsu.account.id, of_minsu.id, at(4)).await);
}

pub(super) async fn a_use_keeps_an_open_session_and_uses_nothing_up(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let minsu = sign_up(&store, "minsu1234").await;
    let session = log_in(&store, &hana, &policy, at(0)).await;
    let day = 86_400;
    let touch = async |member: &MemberId, now| {
        store.touch(member, session.id, &policy, at(now)).await.unwrap()
    };
    let used = |now| Some(SessionTimes { started_at: at(0), renewed_at: at(now) });
    let (hana, minsu) = (&hana.account.id, &minsu.account.id);
    assert_eq!(touch(hana, 13 * day).await, used(13 * day));
    assert_eq!(touch(hana, 12 * day).await, used(13 * day), "a clock that is behind");
    assert_eq!(touch(minsu, 13 * day).await, None, "another member's");
    assert!(is_open(&store, hana, session.id, at(26 * day)).await);
    assert_eq!(touch(hana, 27 * day).await, None, "idle for too long");
    assert!(matches!(
        rotate(&store, &session.token, &policy, at(14 * day)).await,
        Rotation::Rotated { .. }
    ));
    assert_eq!(touch(hana, 25 * day).await, used(25 * day));
    assert_eq!(touch(hana, 30 * day).await, None, "its absolute end");
    store.end(hana, session.id, false, at(31 * day)).await.unwrap();
    assert_eq!(touch(hana, 26 * day).await, None, "ended");
}

pub(super) async fn a_refresh_token_names_its_session_used_up_or_not(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &policy, at(0)).await;
    let of = async |token: &RefreshToken| store.session_of(&token.hash()).await.unwrap();
    let named = Some((hana.account.id.clone(), session.id));
    assert_eq!(of(&session.token).await, named);
    rotate(&store, &session.token, &policy, at(10)).await;
    assert_eq!(of(&session.token).await, named);
    assert_eq!(of(&RefreshToken::random().unwrap()).await, None);
    store.end(&hana.account.id, session.id, false, at(1_000)).await.unwrap();
    assert_eq!(of(&session.token).await, None);
}

pub(super) async fn sessions_that_are_over_are_pruned_without_a_revocation<S: Ports>(store: S) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let idle = log_in(&store, &hana, &policy, at(0)).await;
    let renewed = log_in(&store, &hana, &policy, at(0)).await;
    let day = 86_400;
    rotate(&store, &renewed.token, &policy, at(10 * day)).await;
    assert!(!is_open(&store, &hana.account.id, idle.id, at(15 * day)).await);
    assert!(is_open(&store, &hana.account.id, renewed.id, at(15 * day)).await);
    assert_eq!(store.prune(&policy, at(13 * day)).await.unwrap(), 0);
    let one = u64::from(!S::EXPIRES_BY_ITSELF);
    assert_eq!(store.prune(&policy, at(15 * day)).await.unwrap(), one);
    assert!(is_open(&store, &hana.account.id, renewed.id, at(15 * day)).await);
    assert_eq!(store.prune(&policy, at(31 * day)).await.unwrap(), one);
    for over in [&idle, &renewed] {
        let late = rotate(&store, &over.token, &policy, at(31 * day)).await;
        assert!(matches!(late, Rotation::Unknown | Rotation::Expired), "{late:?}");
    }
    assert_eq!(revoked(&store, at(0)).await, []);
}

pub(super) async fn a_pruned_salt_turns_a_repeat_into_a_reuse(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &policy, at(0)).await;
    rotate(&store, &session.token, &policy, at(10)).await;
    store.prune(&policy, at(19)).await.unwrap();
    let in_grace = rotate(&store, &session.token, &policy, at(19)).await;
    assert!(matches!(in_grace, Rotation::Repeated { .. }), "{in_grace:?}");
    store.prune(&policy, at(20)).await.unwrap();
    // With a longer grace after a restart, the salt of the successor is gone.
    let longer = SessionPolicy { grace: TimeDelta::seconds(60), ..policy };
    let late = rotate(&store, &session.token, &longer, at(21)).await;
    assert_eq!(late, Rotation::Reused { session: session.id });
}

pub(super) async fn of_many_tabs_that_renew_at_once_one_rotates_and_all_agree(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &policy, at(0)).await;
    let tabs = (0..8).map(|_| async {
        let salt = Salt::random().unwrap();
        let next = session.token.successor(&salt);
        let hash = session.token.hash();
        match store.rotate(&hash, &salt, &next.hash(), &policy, at(5)).await.unwrap() {
            Rotation::Rotated { .. } => (true, next),
            Rotation::Repeated { salt, times, .. } => {
                assert_eq!(times, SessionTimes { started_at: at(0), renewed_at: at(5) });
                (false, session.token.successor(&salt))
            }
            other => panic!("{other:?}"),
        }
    });
    let outcomes = futures::future::join_all(tabs).await;
    assert_eq!(outcomes.iter().filter(|(rotated, _)| *rotated).count(), 1);
    assert!(outcomes.iter().all(|(_, token)| *token == outcomes[0].1), "one successor for all");
}

pub(super) async fn ending_all_of_a_member_ends_no_other_members(store: impl Ports) {
    let policy = SessionPolicy::default();
    let (hana, minsu) = (sign_up(&store, "hana12345").await, sign_up(&store, "minsu1234").await);
    let mut expected = Vec::new();
    for n in 0..3 {
        expected.push(log_in(&store, &hana, &policy, at(n)).await.id);
    }
    let other = log_in(&store, &minsu, &policy, at(3)).await;
    let mut ended = store.end_all(&hana.account.id, at(700)).await.unwrap();
    let mut logged = revoked(&store, at(4)).await;
    for sessions in [&mut expected, &mut ended, &mut logged] {
        sessions.sort_unstable();
    }
    assert_eq!((&ended, &logged), (&expected, &expected));
    for session in expected {
        assert!(!is_open(&store, &hana.account.id, session, at(4)).await);
    }
    assert!(is_open(&store, &minsu.account.id, other.id, at(4)).await);
    assert_eq!(store.end_all(&hana.account.id, at(700)).await.unwrap(), []);
    assert_eq!(store.end_all(&id("nobody123"), at(700)).await.unwrap(), []);
}

pub(super) async fn a_canary_is_in_the_log_and_ends_no_session(store: impl Ports) {
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &SessionPolicy::default(), at(0)).await;
    let canary = SessionId::parse("0198c2f1-7a5b-8c3d-9e4f-0123456789ab").unwrap();
    assert!(canary.is_of_no_session() && !session.id.is_of_no_session());
    store.append_canary(canary, at(60)).await.unwrap();
    assert_eq!(revoked(&store, at(0)).await, [canary]);
    assert!(is_open(&store, &hana.account.id, session.id, at(0)).await);
    assert_eq!(revoked(&store, at(60)).await, []);
    assert_eq!(store.prune_expired(at(60)).await.unwrap(), 1);
}

pub(super) async fn an_invalidation_is_in_the_log_and_ends_no_session(store: impl Ports) {
    let hana = sign_up(&store, "hana12345").await;
    let session = log_in(&store, &hana, &SessionPolicy::default(), at(0)).await;
    let tags = ["spot:42".to_owned(), "spot:7".to_owned()];
    store.invalidate(&tags, at(60)).await.unwrap();
    store.end(&hana.account.id, session.id, false, at(60)).await.unwrap();
    let page = store.page_after(0, 10, at(0)).await.unwrap();
    let read: Vec<_> = page.entries.iter().map(|entry| entry.invalidates.as_deref()).collect();
    assert_eq!(read, [Some("spot:42"), Some("spot:7"), None]);
    assert!(page.entries[..2].iter().all(|entry| entry.session.is_of_no_session()));
    assert_ne!(page.entries[0].session, page.entries[1].session);
    assert_eq!(revoked(&store, at(60)).await, [session.id], "as long as its tokens");
    assert_eq!(store.prune_expired(at(60)).await.unwrap(), 2);
}

pub(super) async fn the_log_is_read_in_stretches_and_forgets_what_has_expired(store: impl Ports) {
    let hana = sign_up(&store, "hana12345").await;
    let sessions: Vec<_> = (0..5).map(|_| SessionId::new()).collect();
    for (n, session) in sessions.iter().enumerate() {
        let until = at(100 + i64::try_from(n).unwrap());
        store.end(&hana.account.id, *session, false, until).await.unwrap();
    }
    let first = store.page_after(0, 2, at(0)).await.unwrap();
    assert_eq!(first.entries.iter().map(|e| e.session).collect::<Vec<_>>(), sessions[..2]);
    assert_eq!(first.entries[0].until, at(100));
    assert_eq!(first.next, first.entries[1].seq);
    let second = store.page_after(first.next, 10, at(0)).await.unwrap();
    assert_eq!(second.entries.iter().map(|e| e.session).collect::<Vec<_>>(), sessions[2..]);
    assert_eq!(second.log_id, first.log_id);
    let end = store.page_after(second.next, 10, at(0)).await.unwrap();
    assert_eq!((end.entries.len(), end.next), (0, second.next));
    let beyond = store.page_after(u64::MAX, 10, at(0)).await.unwrap();
    assert_eq!((beyond.entries.len(), beyond.next), (0, u64::MAX));

    assert_eq!(revoked(&store, at(102)).await, sessions[3..], "expired entries are left out");
    assert_eq!(store.prune_expired(at(102)).await.unwrap(), 3);
    assert_eq!(revoked(&store, at(0)).await, sessions[3..]);
    // Positions are never reused, even when the newest entries are gone.
    assert_eq!(store.prune_expired(at(1_000)).await.unwrap(), 2);
    store.end(&hana.account.id, sessions[0], false, at(2_000)).await.unwrap();
    let after = store.page_after(0, 10, at(0)).await.unwrap();
    assert!(after.entries[0].seq > second.next);
}

pub(super) async fn rotate(
    store: &impl Ports,
    token: &RefreshToken,
    policy: &SessionPolicy,
    now: DateTime<Utc>,
) -> Rotation {
    let salt = Salt::random().unwrap();
    let next = token.successor(&salt).hash();
    store.rotate(&token.hash(), &salt, &next, policy, now).await.unwrap()
}

/// The lifetime of access tokens is lowered from a day to ten minutes while sessions are open.
pub(super) async fn a_shorter_token_lifetime_shortens_no_revocation(store: impl Ports) {
    let before =
        SessionPolicy { access_token: TimeDelta::days(1), per_member: 6, ..Default::default() };
    let after = SessionPolicy { per_member: 6, ..SessionPolicy::default() };
    let hana = sign_up(&store, "hana12345").await;
    let mut open = Vec::new();
    for n in 0..6 {
        open.push(log_in(&store, &hana, &before, at(n)).await);
    }
    // The token of this one is issued under the new lifetime; the old token still counts.
    rotate(&store, &open[1].token, &after, at(10)).await;
    store.touch(&hana.account.id, open[2].id, &after, at(10)).await.unwrap();

    // All the ways in which a session ends, a second after the other.
    let newest = log_in(&store, &hana, &after, at(20)).await;
    assert_eq!(newest.ended, [open[0].id]);
    let successor = Salt::random().unwrap();
    let second = open[1].token.successor(&successor);
    let reused = store
        .rotate(&open[1].token.hash(), &successor, &second.hash(), &after, at(30))
        .await
        .unwrap();
    assert_eq!(reused, Rotation::Reused { session: open[1].id });
    let until = after.revoked_until(at(31));
    store.end(&hana.account.id, open[2].id, false, until).await.unwrap();
    let change = PasswordChange {
        member: hana.account.id.clone(),
        verified: hana.hash.clone(),
        replacement: PasswordHash("another hash".to_owned()),
        keep: open[3].id,
        token: RefreshToken::random().unwrap().hash(),
        revoked_until: until,
        now: at(31),
    };
    store.change_password(change).await.unwrap();
    store.delete(&hana.account.id, until, at(32)).await.unwrap();

    let page = store.page_after(0, 1_000, at(33)).await.unwrap();
    for (n, session) in open.iter().enumerate() {
        let last_expiry = before.access_expires_at(at(n as i64), at(n as i64));
        let kept: Vec<_> =
            page.entries.iter().filter(|entry| entry.session == session.id).collect();
        assert!(!kept.is_empty(), "session {n} is not in the log");
        assert!(kept.iter().all(|entry| entry.until > last_expiry), "session {n}: {kept:?}");
    }
    let of_newest = page.entries.iter().find(|entry| entry.session == newest.id).unwrap();
    assert!(of_newest.until <= until, "{of_newest:?}: no longer than its own tokens need");
}
