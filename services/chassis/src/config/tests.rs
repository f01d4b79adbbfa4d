use std::io::Write;

use super::*;

#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Demo {
    #[command(flatten)]
    file: ConfigFile,
    /// Where to listen
    #[arg(long, env = "DEMO_LISTEN", default_value = "127.0.0.1:1")]
    listen: SocketAddr,
    #[arg(long)]
    ephemeral: bool,
    #[arg(long)]
    origin: Vec<String>,
}

fn parse_with(file: &str, flags: &[&str], set: &[&str]) -> Result<Demo, ConfigError> {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(file.as_bytes()).unwrap();
    let mut args: Vec<OsString> = vec!["demo".into(), "--config".into(), on_disk.path().into()];
    args.extend(flags.iter().map(Into::into));
    try_parse_from(&args, |name| set.contains(&name), None)
}

#[test]
fn a_file_wins_over_defaults_and_flags_win_over_the_file() {
    let file = "listen = '127.0.0.1:2'\nephemeral = true\norigin = ['a', 'b']";
    let demo = parse_with(file, &[], &[]).unwrap();
    assert_eq!(demo.listen.port(), 2);
    assert!(demo.ephemeral);
    assert_eq!(demo.origin, ["a", "b"]);

    let demo = parse_with(file, &["--listen", "127.0.0.1:3", "--origin=c"], &[]).unwrap();
    assert_eq!(demo.listen.port(), 3);
    assert_eq!(demo.origin, ["c"]);
}

#[test]
fn the_environment_wins_over_the_file() {
    // The variable counts as set but is not, so clap uses the default: the test only checks that
    // the file's value is not used.
    let demo = parse_with("listen = '127.0.0.1:2'", &[], &["DEMO_LISTEN"]).unwrap();
    assert_eq!(demo.listen.port(), 1);
}

#[test]
fn a_bad_file_is_one_line_that_names_what_is_wrong() {
    let cases = [
        ("listn = 1", "unknown key 'listn'; known keys: listen, ephemeral, origin"),
        ("listen = 'nonsense'", "invalid value 'nonsense' for '--listen"),
        ("listen = {a = 1}", "key 'listen' is table: expected a string"),
        ("x = 1\nlisten = ", ":2: not TOML"),
    ];
    for (file, expected) in cases {
        let message = parse_with(file, &[], &[]).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_bad_flag_is_one_line() {
    let message = parse_with("", &["--listen", "nowhere"], &[]).unwrap_err().to_string();
    assert_eq!(
        message,
        "invalid value 'nowhere' for '--listen <LISTEN>': invalid socket address syntax"
    );
}

#[test]
fn a_missing_file_is_named() {
    let args: Vec<OsString> = vec!["demo".into(), "--config=/no/such/file".into()];
    let message = try_parse_from::<Demo>(&args, |_| false, None).unwrap_err().to_string();
    assert!(message.starts_with("cannot read --config /no/such/file"), "{message}");
}

#[derive(Debug, Parser)]
struct Tool {
    #[command(subcommand)]
    command: ToolCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ToolCommand {
    Serve(Demo),
    Show {
        #[command(subcommand)]
        what: ShowCommand,
    },
}

#[derive(Debug, clap::Subcommand)]
enum ShowCommand {
    Things {
        #[command(flatten)]
        file: ConfigFile,
        #[arg(long, default_value_t = 1)]
        count: u8,
    },
}

#[test]
fn one_file_serves_all_commands_of_a_program() {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(b"listen = '127.0.0.1:2'\ncount = 7\n").unwrap();
    let with = |words: &[&str]| {
        let mut args: Vec<OsString> = words.iter().map(Into::into).collect();
        args.extend(["--config".into(), on_disk.path().into()]);
        try_parse_from::<Tool>(&args, |_| false, None).unwrap().command
    };
    assert!(
        matches!(with(&["tool", "serve"]), ToolCommand::Serve(demo) if demo.listen.port() == 2)
    );
    let things = with(&["tool", "show", "things"]);
    assert!(
        matches!(things, ToolCommand::Show { what: ShowCommand::Things { count: 7, file } } if file.config.is_some())
    );
}

#[test]
fn an_instance_on_all_addresses_advertises_one() {
    let mut mesh = MeshSettings::new("https://127.0.0.1:8500");
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    assert_eq!(mesh.advertised(address("127.0.0.2:80")), address("127.0.0.2:80"));
    assert_eq!(mesh.advertised(address("0.0.0.0:80")), address("127.0.0.1:80"));
    mesh.advertise = Some(address("10.0.0.1:8080"));
    assert_eq!(mesh.advertised(address("0.0.0.0:80")), address("10.0.0.1:8080"));
}

#[derive(Debug, Parser)]
struct Strict {
    #[arg(long, env = "STRICT_KEY")]
    key: String,
}

#[test]
fn a_missing_setting_is_named_with_its_variable() {
    let args: Vec<OsString> = vec!["strict".into()];
    let message = try_parse_from::<Strict>(&args, |_| false, None).map(|it| it.key).unwrap_err();
    let message = message.to_string();
    assert!(message.contains("--key") && message.contains("STRICT_KEY"), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_join_token_is_read_from_its_file_each_time() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut access = MeshAccess::new("https://127.0.0.1:8500");
    assert!(access.join_token().unwrap_err().contains("--join-token-file"));
    access.join_token_file = Some(file.path().into());
    file.write_all(b"one").unwrap();
    assert_eq!(access.join_token().unwrap(), "one");
    file.write_all(b"-two").unwrap();
    assert_eq!(access.join_token().unwrap(), "one-two");
    access.join_token_file = Some("/no/such/token".into());
    assert!(access.join_token().unwrap_err().contains("/no/such/token"));
}

#[test]
fn effective_settings_name_their_source_and_hide_secrets() {
    #[derive(Debug, Parser)]
    struct WithSecret {
        #[command(flatten)]
        demo: Demo,
        #[arg(long, env = "DEMO_TOKEN", hide_env_values = true)]
        token: Option<String>,
    }
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(b"origin = ['a', 'b']\ntoken = 'geheim'").unwrap();
    let mut args: Vec<OsString> = vec!["demo".into(), "--config".into(), on_disk.path().into()];
    args.push("--ephemeral".into());
    let (settings, effective) = read::<WithSecret>(&args, |_| false, None).unwrap();
    let setting = |name: &str| {
        let found = effective.iter().find(|setting| setting.name == name).unwrap();
        (found.values.iter().map(String::as_str).collect::<Vec<_>>(), found.source)
    };
    assert!(settings.demo.ephemeral && settings.token.is_some());
    assert_eq!(setting("listen"), (vec!["127.0.0.1:1"], "default"));
    assert_eq!(setting("origin"), (vec!["a", "b"], "file"));
    assert_eq!(setting("ephemeral"), (vec!["true"], "flag"));
    assert_eq!(setting("token"), (vec!["(hidden)"], "file"));
    assert!(!format!("{effective:?}").contains("geheim"));
}
