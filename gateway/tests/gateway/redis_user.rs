//! What the gateway's user at Redis may do: a stolen gateway must not become a stolen session.

use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, RedisResult, Value};
use tourin_testbed::{Server, User, given, given_to};

/// A database that nothing uses, for commands that would empty it.
const UNUSED: u8 = 15;

async fn connect(url: String) -> MultiplexedConnection {
    let client = Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// A command in one line, its parts separated by spaces.
fn command(line: &str) -> Cmd {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    command
}

async fn run(connection: &mut MultiplexedConnection, line: &str) -> RedisResult<Value> {
    command(line).query_async(connection).await
}

#[tokio::test]
async fn the_gateways_redis_user_reads_two_keys_counts_calls_and_is_refused_everything_else() {
    let mut gateway = connect(given_to(User::Gateway, Server::Redis)).await;
    // The commands of `RevocationStream`.
    for allowed in [
        "GET {tourin:sessions}:log",
        "XREVRANGE {tourin:sessions}:revocations + - COUNT 1",
        "XREAD COUNT 10 STREAMS {tourin:sessions}:revocations 0-0",
        "XREAD COUNT 10 BLOCK 1 STREAMS {tourin:sessions}:revocations $",
        // Those of `SharedCounts`.
        "SCRIPT LOAD return(1)",
        "TIME",
        "GET {tourin:sessions}:rate:probe",
        "SET {tourin:sessions}:rate:probe 1 PX 1000",
    ] {
        run(&mut gateway, allowed).await.unwrap_or_else(|error| panic!("{allowed}: {error}"));
    }

    run(&mut gateway, &format!("SELECT {UNUSED}")).await.unwrap();
    for refused in [
        // Reading other keys, of sessions and of the trend.
        "GET {tourin:sessions}:session",
        "XREAD COUNT 1 STREAMS {tourin:sessions}:others 0-0",
        "HGETALL {tourin:sessions}:session:1",
        "ZRANGE tourin:{trend}:scores 0 -1",
        "GET anything",
        // Writing, its own keys included.
        "SET {tourin:sessions}:log another",
        "XADD {tourin:sessions}:revocations * session s1 until 1",
        "XTRIM {tourin:sessions}:revocations MAXLEN 0",
        "DEL {tourin:sessions}:revocations",
        "SET {tourin:sessions}:revocations 1",
        "SET {tourin:sessions}:session:1 1",
        "DEL {tourin:sessions}:rate:probe",
        "EVAL return(1) 0",
        "SCRIPT FLUSH",
        // The names of keys, and the server.
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "FLUSHDB",
        "CONFIG GET *",
        "ACL LIST",
        "CLIENT LIST",
        "INFO",
        "SUBSCRIBE anything",
    ] {
        match run(&mut gateway, refused).await {
            Err(error) => assert_eq!(error.code(), Some("NOPERM"), "{refused}: {error}"),
            Ok(answer) => panic!("{refused}: it was not refused: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn sessions_and_trend_are_closed_to_each_others_redis_users() {
    for (user, own, others) in [
        (User::Core, "{tourin:sessions}:probe", "tourin:{trend}:probe"),
        (User::Recommendation, "tourin:{trend}:probe", "{tourin:sessions}:probe"),
    ] {
        let mut connection = connect(given_to(user, Server::Redis)).await;
        run(&mut connection, &format!("SET {own} 1 PX 1000")).await.unwrap();
        let error = run(&mut connection, &format!("SET {others} 1 PX 1000")).await.unwrap_err();
        assert_eq!(error.code(), Some("NOPERM"), "{user:?}: {error}");
        // What is refused to a user is refused to its scripts.
        let script = "return redis.call('GET',ARGV[1])";
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script);
        let hash: String = load.query_async(&mut connection).await.unwrap();
        run(&mut connection, &format!("EVALSHA {hash} 0 {own}")).await.unwrap();
        let run = run(&mut connection, &format!("EVALSHA {hash} 0 {others}")).await;
        assert!(run.is_err(), "{user:?}: {run:?}");
    }
    // The tests' own user, for comparison: the server is not closed to all.
    let mut admin = connect(given(Server::Redis)).await;
    run(&mut admin, "GET tourin:{trend}:probe").await.unwrap();
}
