//! Accounts.

use super::*;
use crate::app::accounts::{Changed, PasswordChange};
use crate::app::session_store::Rotation;
use crate::domain::account::ProfileChange;
use crate::domain::page::PageRequest;
use crate::domain::search::SearchText;

pub(super) async fn an_account_reads_back_as_it_was_created(store: impl Ports) {
    let hana = sign_up(&store, "hana12345").await;
    assert_eq!(store.credentials(&id("hana12345")).await.unwrap(), Some(hana));
    let member = store.member(&id("hana12345")).await.unwrap().unwrap();
    assert_eq!((member.id.as_str(), member.name.as_str()), ("hana12345", "김하나"));
}

pub(super) async fn ids_are_case_sensitive_but_taken_in_any_case(store: impl Ports) {
    sign_up(&store, "hana12345").await;
    assert_eq!(store.credentials(&id("HANA12345")).await.unwrap(), None);
    assert_eq!(store.member(&id("Hana12345")).await.unwrap(), None);
    assert!(store.is_taken(&id("Hana12345")).await.unwrap());
    assert!(!store.is_taken(&id("hana12346")).await.unwrap());
    let other = credentials("HANA12345", "다른 이름".split(' ').next().unwrap());
    assert_eq!(store.create(&other, at(1)).await.unwrap(), Created::Taken);
}

pub(super) async fn of_many_who_want_one_id_at_once_one_gets_it(store: impl Ports) {
    let wishes: Vec<_> = ["minsu1234", "MinSu1234", "MINSU1234", "minSU1234"]
        .into_iter()
        .map(|wish| credentials(wish, "민수"))
        .collect();
    let outcomes = futures::future::join_all(wishes.iter().map(|wish| store.create(wish, at(0))));
    let created = outcomes.await.into_iter().filter(|o| matches!(o, Ok(Created::Created))).count();
    assert_eq!(created, 1);
}

pub(super) async fn a_profile_changes_only_the_given_fields(store: impl Ports) {
    let hana = sign_up(&store, "hana12345").await;
    let name = Name::parse("Hana Kim").unwrap();
    let change = ProfileChange { name: Some(name.clone()), email: None };
    let changed = store.update_profile(&id("hana12345"), &change, at(1)).await.unwrap().unwrap();
    assert_eq!(changed, Account { name, ..hana.account.clone() });
    let nothing = ProfileChange::default();
    let same = store.update_profile(&id("hana12345"), &nothing, at(2)).await.unwrap().unwrap();
    assert_eq!(same, changed);
    let nobody = store.update_profile(&id("nobody123"), &nothing, at(2)).await.unwrap();
    assert_eq!(nobody, None);
}

fn password_change(of: &Credentials, keep: SessionId) -> PasswordChange {
    PasswordChange {
        member: of.account.id.clone(),
        verified: of.hash.clone(),
        replacement: PasswordHash("another hash".to_owned()),
        keep,
        token: RefreshToken::random().unwrap().hash(),
        revoked_until: at(1_000),
        now: at(10),
    }
}

pub(super) async fn a_new_password_ends_the_members_other_sessions(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let minsu = sign_up(&store, "minsu1234").await;
    let here = log_in(&store, &hana, &policy, at(1)).await;
    let there = log_in(&store, &hana, &policy, at(2)).await;
    let others = log_in(&store, &minsu, &policy, at(3)).await;

    let rotation = sessions::rotate(&store, &here.token, &policy, at(4)).await;
    assert!(matches!(rotation, Rotation::Rotated { .. }));
    let successor = RefreshToken::random().unwrap();
    let change = PasswordChange { token: successor.hash(), ..password_change(&hana, here.id) };
    let changed = store.change_password(change).await.unwrap();
    assert_eq!(changed, Changed::Changed { ended: vec![there.id] });
    assert!(is_open(&store, &hana.account.id, here.id, at(11)).await);
    assert!(!is_open(&store, &hana.account.id, there.id, at(11)).await);
    assert!(is_open(&store, &minsu.account.id, others.id, at(11)).await);
    assert_eq!(revoked(&store, at(11)).await, [there.id]);

    // Of this session the new refresh token alone is good; the old one ends nothing either.
    let rotation = sessions::rotate(&store, &here.token, &policy, at(11)).await;
    assert_eq!(rotation, Rotation::Unknown);
    let rotation = sessions::rotate(&store, &successor, &policy, at(11)).await;
    assert!(matches!(rotation, Rotation::Rotated { session, .. } if session == here.id));
    assert!(is_open(&store, &hana.account.id, here.id, at(11)).await);

    // The old password's hash is no longer accepted.
    let late = store.change_password(password_change(&hana, here.id)).await.unwrap();
    assert_eq!(late, Changed::Stale);
    let open = OpenSession {
        member: hana.account.id.clone(),
        session: SessionId::new(),
        token: RefreshToken::random().unwrap().hash(),
        verified: hana.hash,
        rehashed: None,
        now: at(12),
    };
    assert_eq!(store.open(open, &policy).await.unwrap(), Opened::Stale);
}

pub(super) async fn a_deleted_account_is_gone_with_its_sessions(store: impl Ports) {
    let policy = SessionPolicy::default();
    let hana = sign_up(&store, "hana12345").await;
    let first = log_in(&store, &hana, &policy, at(1)).await;
    let second = log_in(&store, &hana, &policy, at(2)).await;

    let mut ended = store.delete(&hana.account.id, at(1_000), at(3)).await.unwrap().unwrap();
    ended.sort();
    let mut expected = vec![first.id, second.id];
    expected.sort();
    assert_eq!(ended, expected);
    assert_eq!(store.credentials(&hana.account.id).await.unwrap(), None);
    assert!(!is_open(&store, &hana.account.id, first.id, at(4)).await);
    assert_eq!(revoked(&store, at(4)).await.len(), 2);
    assert_eq!(store.delete(&hana.account.id, at(1_000), at(5)).await.unwrap(), None);
}

/// A link to a member's profile must not lead to another person later.
pub(super) async fn the_id_of_a_deleted_member_stays_taken(store: impl Ports) {
    let hana = sign_up(&store, "hana12345").await;
    assert!(!store.is_taken(&id("minsu1234")).await.unwrap());
    store.delete(&hana.account.id, at(1_000), at(3)).await.unwrap();
    for taken in ["hana12345", "HANA12345"] {
        assert!(store.is_taken(&id(taken)).await.unwrap(), "{taken}");
        let again = store.create(&credentials(taken, "하나"), at(4)).await.unwrap();
        assert_eq!(again, Created::Taken, "{taken}");
        assert_eq!(store.credentials(&id(taken)).await.unwrap(), None, "{taken}");
    }
    sign_up(&store, "hana12346").await;
}

/// Sign-ups with the id that is being deleted never get it, whichever comes first.
pub(super) async fn an_id_is_not_taken_while_it_is_deleted(store: impl Ports) {
    for round in 0..8 {
        let member = format!("member{round:03}");
        let of_member = sign_up(&store, &member).await;
        let wish = credentials(&member, "하나");
        let wishes = futures::future::join_all((0..4).map(|_| store.create(&wish, at(1))));
        let deletion = store.delete(&of_member.account.id, at(1_000), at(1));
        let (created, deleted) = futures::future::join(wishes, deletion).await;
        assert!(deleted.unwrap().is_some());
        for outcome in created {
            assert_eq!(outcome.unwrap(), Created::Taken, "round {round}");
        }
        assert_eq!(store.credentials(&of_member.account.id).await.unwrap(), None);
    }
}

pub(super) async fn a_page_of_members_and_the_total_are_of_one_moment(store: impl Ports) {
    let all = PageRequest::new(Some(1), Some(100)).unwrap();
    let newcomers = async {
        for n in 0..100 {
            sign_up(&store, &format!("member{n:04}")).await;
        }
    };
    let looks = async {
        loop {
            let found = store.members(None, all, 1_000).await.unwrap();
            assert_eq!(found.items.len() as u64, found.total);
            if found.total == 100 {
                return;
            }
        }
    };
    let both = futures::future::join(newcomers, looks);
    tokio::time::timeout(std::time::Duration::from_secs(60), both).await.unwrap();
}

pub(super) async fn members_are_found_by_part_of_id_or_name(store: impl Ports) {
    for (member, name) in [
        ("zebra1234", "김하나"),
        ("Apple1234", "Anna Lee"),
        ("hana12345", "박민수"),
        ("hanb12345", "이하나"),
    ] {
        store.create(&credentials(member, name), at(0)).await.unwrap();
    }
    let page = |number, size| PageRequest::new(Some(number), Some(size)).unwrap();
    let ids = |query: Option<&'static str>, request| {
        let store = &store;
        async move {
            let query = query.and_then(|query| SearchText::new(query).unwrap());
            let found = store.members(query.as_ref(), request, 1_000).await.unwrap();
            let ids: Vec<_> = found.items.iter().map(|member| member.id.to_string()).collect();
            (ids, found.total)
        }
    };
    let all = ["Apple1234", "hana12345", "hanb12345", "zebra1234"].map(str::to_owned);
    assert_eq!(ids(None, page(1, 10)).await, (all.to_vec(), 4), "by code point");
    assert_eq!(ids(None, page(2, 3)).await, (all[3..].to_vec(), 4));
    assert_eq!(ids(None, page(9, 100)).await, (vec![], 4));
    assert_eq!(ids(Some("하나"), page(1, 10)).await.0, ["hanb12345", "zebra1234"]);
    assert_eq!(ids(Some("HANA"), page(1, 10)).await.0, ["hana12345"]);
    assert_eq!(ids(Some("nna l"), page(1, 10)).await.0, ["Apple1234"]);
    for (member, name) in [
        ("elodie123", "Élodie O’Brien-Ångström"),
        ("georgios1", "Γιώργος Σ."),
        ("yoshino12", "𠮷野"),
        ("longest12", &"𝒜".repeat(Name::MAX_CHARS)),
    ] {
        let wanted = credentials(member, name);
        store.create(&wanted, at(0)).await.unwrap();
        assert_eq!(store.credentials(&id(member)).await.unwrap(), Some(wanted));
    }
    for (query, found) in [
        ("ÉLODIE", "elodie123"),
        ("e\u{301}lod", "elodie123"),
        ("’brien-å", "elodie123"),
        ("ώΡΓος σ", "georgios1"),
        ("𠮷", "yoshino12"),
    ] {
        assert_eq!(ids(Some(query), page(1, 10)).await.0, [found], "{query}");
    }
    let change = ProfileChange { name: Some(Name::parse("Öztürk").unwrap()), email: None };
    store.update_profile(&id("hana12345"), &change, at(1)).await.unwrap();
    assert_eq!(ids(Some("öZTÜR"), page(1, 10)).await.0, ["hana12345"]);
    assert_eq!(ids(Some("박민수"), page(1, 10)).await.1, 0, "the name is another one now");
    for syntax in ["\0", "\u{301}", "%", "_", "*", "'", "\"", "OR 1=1", "han%"] {
        assert_eq!(ids(Some(syntax), page(1, 10)).await, (vec![], 0), "{syntax} is text");
    }
}

pub(super) async fn a_list_of_members_and_its_total_end_at_their_bound(store: impl Ports) {
    for n in 0..25 {
        sign_up(&store, &format!("member{n:02}")).await;
    }
    let members = SearchText::new("MEMBER").unwrap();
    for query in [None, members.as_ref()] {
        for (number, first, items) in [(1, "member00", 10), (2, "member10", 8), (3, "", 0)] {
            let request = PageRequest::new(Some(number), Some(10)).unwrap();
            let page = store.members(query, request, 18).await.unwrap();
            let first_here = page.items.first().map_or("", |member| member.id.as_str());
            assert_eq!((first_here, page.items.len(), page.total), (first, items, 18));
        }
        let last = PageRequest::new(Some(u64::MAX >> 1), Some(100)).unwrap();
        assert!(store.members(query, last, 18).await.unwrap().items.is_empty());
    }
}
