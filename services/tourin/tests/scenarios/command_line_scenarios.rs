//! The command line of `tourin`.

use std::time::Duration;

use tourin_chassis::http_client;
use tourin_testbed::{contains, equal, eventually, free_address};

use crate::process::{Process, command};
use crate::world::TIMEOUT;

fn stderr_and_code(arguments: &[&str]) -> (String, Option<i32>) {
    let output = command("tourin").args(arguments).output().expect("it runs");
    (String::from_utf8(output.stderr).unwrap(), output.status.code())
}

#[test]
fn invalid_arguments_exit_with_2_and_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "listn = '127.0.0.1:0'\n").unwrap();
    let file = file.to_str().unwrap();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();

    let cases: [(&[&str], &str); 8] = [
        (&["up", "--ephemeral", "--listen", &taken], &taken),
        (&["up", "--listen", "nowhere"], "--listen"),
        (&["up", "--listen", "127.0.0.1:0", "--data-dir", file], "--data-dir"),
        (&["up", "--replicas", "recommendation=0"], "recommendation=N"),
        (&["up", "--log-format", "xml"], "--log-format"),
        (&["up", "--redis-url", "redis://store.example"], "--allow-plaintext"),
        (&["up", "--config", file], "unknown key 'listn'"),
        (&["up", "--config", "/no/such/file"], "/no/such/file"),
    ];
    for (arguments, named) in cases {
        let (stderr, code) = stderr_and_code(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
        let errors: Vec<_> = stderr.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(errors.len(), 1, "{arguments:?}: {stderr}");
    }
}

#[test]
fn help_shows_every_flag_with_its_variable() {
    let output = command("tourin").args(["up", "--help"]).output().unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in [
        "--listen",
        "--data-dir",
        "--ephemeral",
        "--no-demo",
        "--replicas",
        "--log-format",
        "--config",
    ] {
        assert!(help.contains(flag), "{flag}");
        let variable = format!("TOURIN_{}", flag[2..].to_uppercase().replace('-', "_"));
        assert!(help.contains(&variable), "{variable}");
    }
}

#[test]
fn the_short_help_is_what_a_newcomer_sets() {
    let text = |flag: &str| {
        let output = command("tourin").args(["up", flag]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (short, long) = (text("-h"), text("--help"));
    for flag in ["--listen", "--mysql-url", "--cookie-secure"] {
        assert!(short.contains(flag) && long.contains(flag), "{flag}: {short}");
    }
    for flag in ["--max-requests", "--login-burst", "--history-limit", "--core-drain-timeout-ms"] {
        assert!(!short.contains(flag) && long.contains(flag), "{flag}: {short}");
    }
    for heading in ["Gateway:", "Core:", "Recommendation:", "Registry:", "Several parts:"] {
        assert!(long.contains(heading), "{heading}: {long}");
    }
}

#[tokio::test]
async fn settings_come_from_file_environment_and_flags_in_this_order() {
    let folder = tempfile::tempdir().unwrap();
    let (address, other) = (free_address().to_string(), free_address().to_string());
    let file = folder.path().join("tourin.toml");
    let unused = folder.path().join("unused");
    let text = format!("listen = '{other}'\ndata-dir = '{}'\nno-demo = true\n", unused.display());
    std::fs::write(&file, text).unwrap();
    let mut up = command("tourin");
    up.env("TOURIN_CONFIG", &file).env("TOURIN_EPHEMERAL", "1").args(["--listen", &address]);
    let process = Process::start(up);
    process.wait_for_line("Tourin is ready");
    let spots = get(&format!("http://{address}/api/tour-spots")).await;
    assert_eq!(spots, serde_json::json!([]), "no-demo is the file's");
    assert!(!unused.exists(), "ephemeral wins over a folder");

    // Another command with other flags accepts the same file.
    let mut letters = command("tourin");
    letters.env("TOURIN_CONFIG", &file).args(["events", "dead-letters", "list"]);
    let output = letters.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("no mesh has run on this folder"), "{stderr}");
    assert!(stderr.contains("unused"), "the folder is the file's: {stderr}");
}

#[tokio::test]
async fn a_setting_of_a_part_is_one_of_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tourin.toml");
    std::fs::write(&file, "map-spots = 2\naccess-token-s = 40\n").unwrap();

    let address = free_address().to_string();
    let mut up = command("tourin");
    up.args(["up", "--ephemeral", "--body-limit-bytes", "300", "--config"]).arg(&file);
    up.env("TOURIN_ACCESS_TOKEN_S", "7").env("TOURIN_GATEWAY_LISTEN", &address);
    let process = Process::start(up);
    process.wait_for_line("Tourin is ready");
    let all = "minLat=33&minLng=124&maxLat=39&maxLng=132";
    let map = get(&format!("http://{address}/api/tour-spots/map?{all}")).await;
    assert_eq!(map.as_array().map(Vec::len), Some(2), "the file's, of core: {map}");

    let client = client();
    let post = async |path: &str, body: &serde_json::Value| {
        let request = client.post(format!("http://{address}/api/auth/{path}")).json(body);
        request.send().await.expect("an answer")
    };
    let mut member = serde_json::json!({
        "id": "keeper001", "password": "Tour1n!pass", "name": "Keeper", "email": "k@example.com",
    });
    assert_eq!(post("signup", &member).await.status(), 201);
    let answer = post("login", &member).await.json::<serde_json::Value>().await.unwrap();
    assert_eq!(answer["expiresIn"], 7, "the variable's, before the file's: {answer}");
    member["name"] = "x".repeat(300).into();
    assert_eq!(post("signup", &member).await.status(), 413, "the flag's, of the gateway");
}

#[test]
fn every_program_warns_of_unknown_variables() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["tourin", "gateway", "registry", "core", "recommendation"] {
        let mut command = command(program);
        command
            .args(["--listen", "127.0.0.1:0"])
            .env("TOURIN_ACESS_TOKEN_S", "a-word-of-somebody")
            .env("TOURIN_TESTBED_ANYTHING", "1")
            .env("TOURIN_LOG", "warn");
        match program {
            "tourin" => {
                command.arg("--ephemeral");
            }
            "core" | "recommendation" | "registry" => {
                command.arg("--data-dir").arg(folder.path().join(program));
            }
            _ => {}
        }
        let process = Process::start(command);
        let line = process.wait_for_line("no program of Tourin reads");
        assert!(line.contains("is TOURIN_ACCESS_TOKEN_S meant?"), "{program}: {line}");
        assert!(line.contains("TOURIN_ACESS_TOKEN_S"), "{program}: {line}");
        assert!(!line.contains("a-word-of-somebody"), "{program}: {line}");
    }
}

fn client() -> reqwest::Client {
    http_client::client(TIMEOUT).unwrap()
}

async fn get(url: &str) -> serde_json::Value {
    let answer = client().get(url).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{url}: {}", answer.status());
    answer.json().await.expect("JSON")
}

#[tokio::test]
async fn a_route_to_an_absent_service_does_not_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let routes = folder.path().join("routes.toml");
    let absent =
        "[[route]]\npath = '/api/absent'\nservice = 'absent'\nmethods = { GET = 'public' }\n";
    std::fs::write(&routes, format!("{}\n{absent}", tourin_gateway::routes::BUILT_IN)).unwrap();
    let address = free_address().to_string();
    let mut up = command("tourin");
    up.args(["up", "--ephemeral", "--listen", &address, "--routes"]).arg(&routes);
    let process = Process::start(up);
    process.wait_for_line("Tourin is ready");
    let spots = get(&format!("http://{address}/api/tour-spots")).await;
    assert!(!spots.as_array().unwrap().is_empty());
    assert_eq!(status(&format!("http://{address}/api/absent")).await, 503);
    // The gateway becomes ready after a while all the same.
    let readyz = format!("http://{address}/readyz");
    eventually("the gateway is ready", async || equal(status(&readyz).await, 200)).await;
}

async fn status(url: &str) -> u16 {
    client().get(url).send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn a_second_start_finds_the_data_of_the_first_and_ctrl_c_ends_it_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address().to_string();
    let up = || {
        let mut up = command("tourin");
        // Settings by variables.
        up.env("TOURIN_LISTEN", &address).env("TOURIN_DATA_DIR", folder.path());
        let process = Process::start(up);
        process.wait_for_line("Tourin is ready");
        process
    };
    let url = format!("http://{address}/api/users?query=keeper");
    let sign_up = serde_json::json!({
        "id": "keeper001", "password": "Tour1n!pass", "name": "Keeper", "email": "k@example.com",
    });

    let mut first = up();
    let request = client().post(format!("http://{address}/api/auth/signup"));
    let answer = request.json(&sign_up).send().await.expect("an answer");
    assert_eq!(answer.status(), 201);
    first.signal("INT");
    assert!(first.wait(Duration::from_secs(20)).await.success());

    let mut second = up();
    assert_eq!(get(&url).await[0]["id"], "keeper001");
    second.signal("TERM");
    assert!(second.wait(Duration::from_secs(20)).await.success());
}

#[tokio::test]
async fn import_loads_the_good_rows_and_names_the_bad_ones() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let file = folder.path().join("spots.csv");
    std::fs::write(
        &file,
        "id,name,address,lat,lng,tags,description,phoneNumber,imageUrl\n\
         900001,가온누리 전망대,강원특별자치도 강릉시,37.75,128.87,자연,바다가 보인다,,\n\
         900002,나쁜 좌표,강원특별자치도 강릉시,97.75,128.87,자연,,,\n\
         900003,모르는 태그,강원특별자치도 강릉시,37.75,128.87,우주,,,\n\
         900004,다온누리 광장,강원특별자치도 강릉시,37.76,128.88,문화|휴양,넓다,,\n",
    )
    .unwrap();
    let import = || {
        let mut import = command("tourin");
        import.arg("import").arg(&file).arg("--data-dir").arg(&data);
        let output = import.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, stdout, stderr) = import();
    assert_eq!(code, Some(1), "the exit code shows bad rows: {stdout}{stderr}");
    assert!(stdout.contains("2 imported") && stdout.contains("2 rejected"), "{stdout}");
    assert!(stderr.contains("line 3") && stderr.contains("lat"), "{stderr}");
    assert!(stderr.contains("line 4") && stderr.contains("우주"), "{stderr}");
    let (_, stdout, _) = import();
    assert!(stdout.contains("0 imported") && stdout.contains("2 unchanged"), "{stdout}");

    let address = free_address().to_string();
    let mut up = command("tourin");
    up.args(["up", "--no-demo", "--listen", &address, "--data-dir"]).arg(&data);
    let process = Process::start(up);
    process.wait_for_line("Tourin is ready");
    let found =
        get(&format!("http://{address}/api/tour-spots?query=%EC%98%A8%EB%88%84%EB%A6%AC")).await;
    let names: Vec<_> = found.as_array().unwrap().iter().map(|spot| &spot["name"]).collect();
    assert_eq!(names, ["가온누리 전망대", "다온누리 광장"]);
    // An import while the mesh runs reaches the other service too.
    std::fs::write(
        &file,
        "{\"id\":\"900005\",\"name\":\"라온누리\",\"address\":\"강원특별자치도 강릉시\",\"lat\":37.77,\"lng\":128.89,\"tags\":[\"문화\"],\"description\":\"새롭다\"}\n",
    )
    .unwrap();
    let mut more = command("tourin");
    more.arg("import").arg(&file).args(["--format", "ndjson", "--data-dir"]).arg(&data);
    let output = more.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let url = format!("http://{address}/api/tour-spots/900001/similar?k=10");
    eventually("recommendation knows the imported spot", async || {
        contains(get(&url).await.to_string(), "라온누리")
    })
    .await;
}

#[test]
fn demo_traffic_browses_and_bookmarks_through_the_gateway() {
    let address = free_address().to_string();
    let mut up = command("tourin");
    up.args(["up", "--ephemeral", "--listen", &address]);
    let process = Process::start(up);
    process.wait_for_line("Tourin is ready");
    let mut traffic = command("tourin");
    traffic.args(["demo-traffic", "--members", "3", "--rate", "60", "--duration-s", "2"]);
    traffic.args(["--gateway", &format!("http://{address}")]);
    let output = traffic.output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    let views: u32 = stdout.split(' ').next().unwrap().parse().unwrap();
    assert!(views > 20, "{stdout}");
    assert!(stdout.trim_end().ends_with("0 failed"), "{stdout}");
}
