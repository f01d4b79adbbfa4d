//! Hashes passwords with Argon2id on blocking threads, with bounded concurrency.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use argon2::password_hash::rand_core::OsRng;
use argon2::password_hash::{Output, ParamsString, PasswordHash as Phc, Salt, SaltString};
use argon2::{Algorithm, Argon2, Block, Params, Version};

use super::fair_queue::{FairQueue, Requester};
use crate::domain::password::{Password, opaque};

/// The cost of a hash and how many are computed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashingPolicy {
    /// Memory of one hash, in KiB. Default 19,456 (OWASP's password storage cheat sheet).
    pub memory_kib: u32,
    /// Passes over the memory. Default 2, same source.
    pub iterations: u32,
    /// Lanes. Default 1, same source.
    pub parallelism: u32,
    /// Hashes computed at once; each takes a core and `memory_kib`.
    pub concurrency: usize,
    /// How long a request waits for a free slot before it is refused with [`HashingError::Busy`].
    pub wait: Duration,
}

impl Default for HashingPolicy {
    fn default() -> Self {
        Self {
            memory_kib: Params::DEFAULT_M_COST,
            iterations: Params::DEFAULT_T_COST,
            parallelism: Params::DEFAULT_P_COST,
            concurrency: 2,
            wait: Duration::from_secs(5),
        }
    }
}

/// A password's hash in PHC string form (`$argon2id$v=19$m=...`). Not printed in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(pub String);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

/// Why a password was not hashed or compared.
#[derive(Debug, thiserror::Error)]
pub enum HashingError {
    /// No slot became free in time, or too many requests of the client wait for one.
    #[error("too many passwords are being checked")]
    Busy,
    /// The computation itself failed.
    #[error("the password could not be hashed")]
    Failed(#[source] anyhow::Error),
}

/// The outcome of comparing a password with a stored hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Another password, or the account does not exist.
    Different,
    /// The same.
    Same {
        /// The hash has other costs than the current ones, or is of another form of the password. It
        /// should be replaced.
        outdated: bool,
    },
}

/// Hashes and compares passwords. Clients are served round robin, so one that logs in often does not
/// keep others waiting.
#[derive(Debug)]
pub struct Passwords {
    argon2: Argon2<'static>,
    permits: FairQueue,
    memory: Arc<Memory>,
    wait: Duration,
    /// Compared with when the account does not exist, so that both cases take equally long.
    dummy: PasswordHash,
}

impl Passwords {
    /// Prepares hashing under `policy`; computes one hash.
    ///
    /// # Errors
    /// When Argon2 does not allow the costs.
    pub fn new(policy: &HashingPolicy) -> anyhow::Result<Self> {
        let params = Params::new(policy.memory_kib, policy.iterations, policy.parallelism, None)
            .map_err(|error| {
                anyhow::anyhow!(
                    "--password-memory-kib {}, --password-iterations {}, \
                         --password-parallelism {}: {error}",
                    policy.memory_kib,
                    policy.iterations,
                    policy.parallelism
                )
            })?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let memory = Arc::new(Memory::default());
        let dummy = memory.lend(|memory| hash_now(&argon2, "", memory))?;
        let permits = FairQueue::new(policy.concurrency);
        Ok(Self { argon2, permits, memory, wait: policy.wait, dummy })
    }

    /// Hashes a new password with a salt of its own.
    ///
    /// # Errors
    /// [`HashingError`].
    pub async fn hash(
        &self,
        password: &Password,
        requester: &Requester,
    ) -> Result<PasswordHash, HashingError> {
        let argon2 = self.argon2.clone();
        let password = password.expose().to_owned();
        self.with_permit(requester, move |memory| hash_now(&argon2, &password, memory)).await
    }

    /// A hash of the text as typed, as older versions made them.
    #[cfg(test)]
    pub(crate) fn hash_as_typed(&self, typed: &str) -> anyhow::Result<PasswordHash> {
        self.memory.lend(|memory| hash_now(&self.argon2, typed, memory))
    }

    /// Compares a typed password with a stored hash. If the account does not exist, compares with a
    /// dummy hash, which takes as long and never matches.
    ///
    /// Hashes are of the form of [`opaque`]. Older hashes are of the text as typed; if that text
    /// differs, it is tried second.
    ///
    /// # Errors
    /// [`HashingError`]; also when the stored hash is malformed.
    pub async fn compare(
        &self,
        typed: &str,
        stored: Option<&PasswordHash>,
        requester: &Requester,
    ) -> Result<Comparison, HashingError> {
        // A text longer than any password cannot match, and must not cost more than one that can.
        let form = opaque(typed).into_owned();
        let possible = form.chars().count() <= Password::MAX_CHARS;
        let known = stored.is_some() && possible;
        let hash = stored.unwrap_or(&self.dummy).clone();
        let before = (possible && form != typed).then(|| typed.to_owned());
        let form = if possible { form } else { String::new() };
        let argon2 = self.argon2.clone();
        self.with_permit(requester, move |memory| {
            let hash = Phc::new(&hash.0).map_err(|error| unreadable(&error))?;
            let mut same = matches_now(&hash, &form, memory)?;
            let mut of_another_form = false;
            if let Some(typed) = before.filter(|_| !(same && known)) {
                of_another_form = matches_now(&hash, &typed, memory)?;
                same |= of_another_form;
            }
            if !(same && known) {
                return Ok(Comparison::Different);
            }
            let costs = |p: &Params| (p.m_cost(), p.t_cost(), p.p_cost());
            let outdated = of_another_form
                || hash.algorithm != Algorithm::Argon2id.ident()
                || Params::try_from(&hash)
                    .map_or(true, |made| costs(&made) != costs(argon2.params()));
            Ok(Comparison::Same { outdated })
        })
        .await
    }

    /// The expensive part of a log-in: waiting for a slot, and computing.
    #[tracing::instrument(name = "password hash", skip_all)]
    async fn with_permit<T: Send + 'static>(
        &self,
        requester: &Requester,
        work: impl FnOnce(&mut Vec<Block>) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, HashingError> {
        let permit = tokio::time::timeout(self.wait, self.permits.acquire(requester))
            .await
            .map_err(|_| HashingError::Busy)?
            .map_err(|_| HashingError::Busy)?;
        // The slot moves into the thread: a disconnected client does not stop the computation, so it
        // must not free the slot either.
        let memory = Arc::clone(&self.memory);
        let done = tokio::task::spawn_blocking(move || {
            let outcome = memory.lend(work);
            drop(permit);
            outcome
        });
        done.await
            .map_err(|panicked| HashingError::Failed(panicked.into()))?
            .map_err(HashingError::Failed)
    }
}

/// The memory of hashes, reused: one buffer per concurrent hash. If each hash allocated its own, the
/// memory would stay with the allocator of each thread, and a service that uses 30 MB would hold
/// hundreds.
#[derive(Default)]
struct Memory(Mutex<Vec<Vec<Block>>>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory(..)")
    }
}

impl Memory {
    fn lend<T>(&self, work: impl FnOnce(&mut Vec<Block>) -> T) -> T {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = free().pop().unwrap_or_default();
        let outcome = work(&mut memory);
        free().push(memory);
        outcome
    }
}

/// Argon2 into `output`, working in `memory`.
fn compute(
    argon2: &Argon2<'_>,
    password: &str,
    salt: Salt<'_>,
    output: &mut [u8],
    memory: &mut Vec<Block>,
) -> anyhow::Result<()> {
    let mut raw = [0; Salt::MAX_LENGTH];
    let salt = salt.decode_b64(&mut raw).map_err(|error| unreadable(&error))?;
    let blocks = argon2.params().block_count();
    if memory.len() < blocks {
        memory.resize(blocks, Block::default());
    }
    argon2
        .hash_password_into_with_memory(password.as_bytes(), salt, output, &mut memory[..blocks])
        .map_err(|error| anyhow::anyhow!("hashing a password: {error}"))
}

fn hash_now(
    argon2: &Argon2<'static>,
    password: &str,
    memory: &mut Vec<Block>,
) -> anyhow::Result<PasswordHash> {
    let salt = SaltString::generate(&mut OsRng);
    let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
    compute(argon2, password, salt.as_salt(), &mut output, memory)?;
    let hash = Phc {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(argon2.params()).map_err(|error| unreadable(&error))?,
        salt: Some(salt.as_salt()),
        hash: Some(Output::new(&output).map_err(|error| unreadable(&error))?),
    };
    Ok(PasswordHash(hash.to_string()))
}

/// Whether `typed` has this hash, computed with the costs in the hash. Compared in constant time.
fn matches_now(hash: &Phc<'_>, typed: &str, memory: &mut Vec<Block>) -> anyhow::Result<bool> {
    let algorithm = Algorithm::try_from(hash.algorithm).map_err(|error| unreadable(&error))?;
    let version = hash.version.map_or(Ok(Version::V0x13), Version::try_from);
    let version = version.map_err(|error| unreadable(&error))?;
    let params = Params::try_from(hash).map_err(|error| unreadable(&error))?;
    let (Some(salt), Some(expected)) = (hash.salt, hash.hash) else {
        anyhow::bail!("a stored password hash has no salt or no hash");
    };
    let mut output = vec![0; expected.len()];
    compute(&Argon2::new(algorithm, version, params), typed, salt, &mut output, memory)?;
    // `Output` compares in constant time.
    Ok(Output::new(&output).map_err(|error| unreadable(&error))? == expected)
}

fn unreadable(error: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("a password hash: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::client_source::ClientSource;
    use crate::app::fair_queue::MAX_WAITING_PER_CLIENT;

    fn cheap() -> HashingPolicy {
        HashingPolicy { memory_kib: 16, iterations: 1, ..HashingPolicy::default() }
    }

    fn requester() -> Requester {
        Requester::urgent(ClientSource::Unknown)
    }

    fn password(text: &str) -> Password {
        Password::parse("password", text).unwrap()
    }

    #[tokio::test]
    async fn a_password_matches_its_own_hash_only() {
        let passwords = Passwords::new(&cheap()).unwrap();
        let hash = passwords.hash(&password("sea-breeze1!"), &requester()).await.unwrap();
        assert!(hash.0.starts_with("$argon2id$v=19$m=16,t=1,p=1$"));
        assert_ne!(
            hash,
            passwords.hash(&password("sea-breeze1!"), &requester()).await.unwrap(),
            "salted"
        );
        let same = passwords.compare("sea-breeze1!", Some(&hash), &requester()).await.unwrap();
        assert_eq!(same, Comparison::Same { outdated: false });
        for other in ["sea-breeze1?", "", &"x".repeat(1_000_000)] {
            let outcome = passwords.compare(other, Some(&hash), &requester()).await.unwrap();
            assert_eq!(outcome, Comparison::Different);
        }
    }

    #[tokio::test]
    async fn an_absent_account_matches_no_password() {
        let passwords = Passwords::new(&cheap()).unwrap();
        for typed in ["", "sea-breeze1!"] {
            assert_eq!(
                passwords.compare(typed, None, &requester()).await.unwrap(),
                Comparison::Different
            );
        }
        // The dummy hash costs as much as a real one.
        assert!(passwords.dummy.0.starts_with("$argon2id$v=19$m=16,t=1,p=1$"));
    }

    #[tokio::test]
    async fn a_hash_with_other_costs_is_outdated() {
        let before = Passwords::new(&cheap()).unwrap();
        let hash = before.hash(&password("sea-breeze1!"), &requester()).await.unwrap();
        let after = Passwords::new(&HashingPolicy { iterations: 2, ..cheap() }).unwrap();
        let outcome = after.compare("sea-breeze1!", Some(&hash), &requester()).await.unwrap();
        assert_eq!(outcome, Comparison::Same { outdated: true });
    }

    #[tokio::test]
    async fn a_password_is_the_same_however_it_is_composed() {
        let passwords = Passwords::new(&cheap()).unwrap();
        let (composed, apart) = ("a1!한글비밀번호", "a1!\u{1112}\u{1161}\u{11AB}글비밀번호");
        let hash = passwords.hash(&password(apart), &requester()).await.unwrap();
        for typed in [composed, apart] {
            let outcome = passwords.compare(typed, Some(&hash), &requester()).await.unwrap();
            assert_eq!(outcome, Comparison::Same { outdated: false }, "{typed}");
        }
        // As an older version made it.
        let before = passwords.hash_as_typed(apart).unwrap();
        let outcome = passwords.compare(apart, Some(&before), &requester()).await.unwrap();
        assert_eq!(outcome, Comparison::Same { outdated: true }, "to be hashed anew");
        let outcome = passwords.compare(composed, Some(&before), &requester()).await.unwrap();
        assert_eq!(outcome, Comparison::Different, "that hash is of another text");
        assert_eq!(
            passwords.compare(apart, None, &requester()).await.unwrap(),
            Comparison::Different
        );
    }

    #[tokio::test]
    async fn a_request_that_waits_too_long_for_a_permit_is_refused() {
        let policy = HashingPolicy { wait: Duration::from_millis(20), concurrency: 1, ..cheap() };
        let passwords = Passwords::new(&policy).unwrap();
        let taken = passwords.permits.acquire(&requester()).await.unwrap();
        let refused = passwords.hash(&password("sea-breeze1!"), &requester()).await;
        assert!(matches!(refused, Err(HashingError::Busy)), "{refused:?}");
        drop(taken);
        assert!(passwords.hash(&password("sea-breeze1!"), &requester()).await.is_ok());
    }

    #[tokio::test]
    async fn four_hundred_log_ins_of_one_network_leave_room_for_another_one() {
        let policy = HashingPolicy { wait: Duration::from_secs(60), ..cheap() };
        let passwords = Arc::new(Passwords::new(&policy).unwrap());
        let network = |last: u8| ClientSource::Network([203, 0, 113, last].into());
        let compare = |from: u8| {
            let (passwords, requester) = (Arc::clone(&passwords), Requester::urgent(network(from)));
            tokio::spawn(async move { passwords.compare("guess", None, &requester).await })
        };
        let mut held = Vec::new();
        for _ in 0..policy.concurrency {
            held.push(passwords.permits.acquire(&requester()).await.unwrap());
        }
        let flood: Vec<_> = (0..400).map(|_| compare(1)).collect();
        let answered = || flood.iter().filter(|call| call.is_finished()).count();
        while answered() < 400 - MAX_WAITING_PER_CLIENT {
            tokio::task::yield_now().await;
        }
        let other = compare(2);
        tokio::task::yield_now().await;
        drop(held);
        assert_eq!(other.await.unwrap().unwrap(), Comparison::Different);
        let answered = answered();
        let mut refused = 0;
        for call in flood {
            refused += usize::from(matches!(call.await.unwrap(), Err(HashingError::Busy)));
        }
        assert_eq!(refused, 400 - MAX_WAITING_PER_CLIENT);
        assert!(answered - refused < 20, "{answered}: it waited for the flood");
    }

    #[test]
    fn costs_that_argon2_does_not_allow_are_named() {
        let error = Passwords::new(&HashingPolicy { memory_kib: 1, ..cheap() }).unwrap_err();
        assert!(error.to_string().starts_with("--password-memory-kib 1"), "{error}");
    }
}
