//! Sessions are opened, renewed and ended while the account changes.

use super::*;
use crate::app::accounts::{Changed, PasswordChange};
use crate::app::session_store::Rotation;
use crate::domain::token::Salt;

const ROUNDS: i64 = 12;
const AT_ONCE: usize = 6;

/// Tries to open a session with a password that may have changed.
async fn try_log_in(store: &impl Ports, credentials: &Credentials) -> Option<SessionId> {
    let session = SessionId::new();
    let open = OpenSession {
        member: credentials.account.id.clone(),
        session,
        token: RefreshToken::random().unwrap().hash(),
        verified: credentials.hash.clone(),
        rehashed: None,
        now: at(5),
    };
    match store.open(open, &SessionPolicy::default()).await.unwrap() {
        Opened::Open { .. } => Some(session),
        Opened::Stale => None,
    }
}

async fn renew_until_ended(store: &impl Ports, session: &Session) {
    let mut token = session.token.clone();
    for _ in 0..1_000 {
        let salt = Salt::random().unwrap();
        let next = token.successor(&salt);
        let policy = SessionPolicy::default();
        match store.rotate(&token.hash(), &salt, &next.hash(), &policy, at(6)).await.unwrap() {
            Rotation::Rotated { .. } => token = next,
            Rotation::Unknown => return,
            other => panic!("{other:?}"),
        }
    }
    panic!("the session never ends");
}

async fn touch_until_ended(store: &impl Ports, member: &MemberId, session: SessionId) {
    let policy = SessionPolicy::default();
    for _ in 0..1_000 {
        if store.touch(member, session, &policy, at(6)).await.unwrap().is_none() {
            return;
        }
    }
    panic!("the session never ends");
}

pub(super) async fn a_session_that_is_used_while_it_ends_does_not_come_back(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let member = hana.account.id.clone();
    for round in 0..ROUNDS {
        let session = log_in(&store, &hana, &policy, at(1)).await;
        let ending = store.end(&member, session.id, false, at(1_000));
        let uses = futures::future::join_all(
            (0..AT_ONCE).map(|_| touch_until_ended(&store, &member, session.id)),
        );
        let (ended, _) = futures::future::join(ending, uses).await;
        assert_eq!(ended.unwrap(), [session.id]);
        assert!(!is_open(&store, &member, session.id, at(6)).await, "round {round}");
        assert!(revoked(&store, at(6)).await.contains(&session.id), "round {round}");
    }
}

pub(super) async fn a_new_password_leaves_no_session_of_the_old_one(store: impl Ports) {
    let policy = SessionPolicy::default();
    let mut hana = sign_up(&store, "hana12345").await;
    let member = hana.account.id.clone();
    for round in 0..ROUNDS {
        let here = log_in(&store, &hana, &policy, at(1)).await;
        let there = log_in(&store, &hana, &policy, at(2)).await;
        let replacement = PasswordHash(format!("hash {round}"));
        let change = PasswordChange {
            member: member.clone(),
            verified: hana.hash.clone(),
            replacement: replacement.clone(),
            keep: here.id,
            token: RefreshToken::random().unwrap().hash(),
            revoked_until: at(1_000),
            now: at(5),
        };
        let log_ins = futures::future::join_all((0..AT_ONCE).map(|_| try_log_in(&store, &hana)));
        let (changed, opened, ()) = futures::future::join3(
            store.change_password(change),
            log_ins,
            renew_until_ended(&store, &there),
        )
        .await;
        let Changed::Changed { ended } = changed.unwrap() else {
            panic!("nobody else changes it");
        };
        assert!(ended.contains(&there.id) && !ended.contains(&here.id));
        // Sessions opened with the old password are ended, and the log has them.
        let known = revoked(&store, at(6)).await;
        for opened in opened.into_iter().flatten() {
            assert!(!is_open(&store, &member, opened, at(6)).await, "round {round}");
            assert!(ended.contains(&opened) && known.contains(&opened), "round {round}");
        }
        assert!(is_open(&store, &member, here.id, at(6)).await);
        assert_eq!(try_log_in(&store, &hana).await, None);
        hana.hash = replacement;
        store.end(&member, here.id, true, at(1_000)).await.unwrap();
    }
}

pub(super) async fn a_deletion_leaves_no_session(store: impl Ports) {
    let policy = SessionPolicy::default();
    for round in 0..ROUNDS {
        let hana = sign_up(&store, &format!("member{round:03}")).await;
        let member = hana.account.id.clone();
        let here = log_in(&store, &hana, &policy, at(1)).await;
        let log_ins = futures::future::join_all((0..AT_ONCE).map(|_| try_log_in(&store, &hana)));
        let (ended, opened, ()) = futures::future::join3(
            store.delete(&member, at(1_000), at(5)),
            log_ins,
            renew_until_ended(&store, &here),
        )
        .await;
        let ended = ended.unwrap().unwrap();
        assert!(ended.contains(&here.id), "round {round}");
        let known = revoked(&store, at(6)).await;
        for opened in opened.into_iter().flatten() {
            assert!(ended.contains(&opened) && known.contains(&opened), "round {round}");
        }
        assert_eq!(try_log_in(&store, &hana).await, None);
    }
}
