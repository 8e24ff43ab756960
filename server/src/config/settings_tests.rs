//! What the host decides, and each relation between keys.

use super::super::layers::Sources;
use super::*;

const SECRET: &str = "auth.secret=0123456789abcdef0123456789abcdef";

fn host() -> Host {
    Host { cpus: vec![0, 1], descriptors_max: 20_000, has_tables: false, name: "box".to_owned() }
}

fn resolve(set: &[&str], dev: bool) -> Result<Settings, Problems> {
    let sources = Sources { set: set.iter().map(|&text| text.to_owned()).collect(), ..Sources::default() };
    Settings::resolve(Layers::read(&sources)?, &host(), dev)
}

fn problem(set: &[&str], dev: bool) -> String {
    resolve(set, dev).err().map(|problems| problems.to_string()).unwrap_or_default()
}

#[test]
fn the_defaults_need_only_a_secret() {
    let settings = resolve(&[SECRET], false).expect("the defaults make sense");
    assert_eq!(settings.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(settings.http.to_string(), "127.0.0.1:9090");
    assert_eq!((settings.shards, settings.node.as_str()), (2, "box"));
    assert_eq!(settings.config.limits.connections_max, Some(20_000 - 256 - 32));
    assert!(settings.warnings.is_empty());
}

#[test]
fn without_a_secret_it_says_how_to_make_one() {
    assert!(problem(&[], false).contains("openssl rand -base64 48"));
    assert!(problem(&["auth.secret=short"], false).contains("has 5 bytes"));
    assert!(!problem(&["auth.secret=short"], false).contains("short"));
}

#[test]
fn a_key_set_stands_in_the_place_of_a_secret_or_beside_it() {
    let url = "auth.jwks=https://issuer.example/jwks";
    let settings = resolve(&[url], false).expect("no secret is needed");
    assert!(settings.secret().is_none() && settings.jwks.is_some());
    assert!(resolve(&[url, SECRET], false).is_ok_and(|settings| settings.secret().is_some()));
    assert!(resolve(&[SECRET], false).is_ok_and(|settings| settings.jwks.is_none()));
    assert!(
        problem(&[url, "auth.second_secret=0123456789abcdef0123456789abcdef"], false).contains("`auth.secret` is not")
    );
    assert!(problem(&[url, "auth.secret=short"], false).contains("has 5 bytes"));
    let missing = problem(&["auth.jwks=/nowhere/jwks.json"], false);
    assert!(
        missing.lines().count() == 1 && missing.contains("`auth.jwks`: /nowhere/jwks.json: No such file"),
        "{missing}"
    );
}

#[test]
fn a_local_trial_needs_no_secret_and_stays_on_loopback() {
    let settings = resolve(&[], true).expect("dev needs nothing");
    assert_eq!(settings.listen.to_string(), "127.0.0.1:8080");
    assert!(problem(&["listen.addr=0.0.0.0:8080"], true).contains("loopback only"));
    assert!(problem(&["http.addr=0.0.0.0:9090"], true).contains("loopback only"));
    assert!(resolve(&["listen.addr=[::1]:8081"], true).is_ok());
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    for (set, named) in [
        (&["limits.content_bytes_max=70000"][..], "content_bytes_max"),
        (&["limits.header_bytes_max=8192"], "header_bytes_max"),
        (&["limits.message_bytes_max=4096", "limits.content_bytes_max=1024"], "token_bytes_max"),
        (&["limits.queue_bytes_max=65536"], "queue_bytes_max"),
        (&["limits.message_bytes_max=0", "limits.content_bytes_max=0"], "queue_bytes_max"),
        (&["limits.messages_burst_max=0"], "messages_burst_max"),
        (&["ring.buffers=3"], "ring.buffers"),
        (&["ring.cq_entries=8"], "ring.cq_entries"),
        (&["limits.connections_max=19900"], "leaves 19712 for clients"),
        (&["http.addr=127.0.0.1:8080"], "different ones"),
        (&["node.id=a b"], "node.id"),
        (&["allowed_origins="], "allowed_origins"),
        (&["allowed_origins=https://a.example/"], "allowed_origins"),
        (&["allowed_origins=null"], "allowed_origins"),
        (&["log.level=a=b=c"], "log.level"),
        (&["http.key=short"], "http.key"),
        (&["auth.issuer="], "auth.issuer"),
        (&["auth.jwks="], "auth.jwks"),
        (&["auth.jwks=http://issuer.example/jwks"], "must begin with https://"),
        (&["auth.jwks_ca_file=/etc/ca.pem"], "auth.jwks_ca_file"),
    ] {
        let mut all = vec![SECRET];
        all.extend(set);
        let found = problem(&all, false);
        assert!(found.lines().count() == 1 && found.contains(named), "{set:?}: {found}");
    }
}

#[test]
fn zero_switches_limits_off_together() {
    let off = [
        "limits.message_bytes_max=0",
        "limits.queue_bytes_max=0",
        "limits.content_bytes_max=0",
        "limits.connections_max=0",
    ];
    let mut all = vec![SECRET];
    all.extend(off);
    assert_eq!(problem(&all, false), "");
    all.push("limits.messages_per_second_max=0");
    all.push("limits.messages_burst_max=0");
    assert_eq!(problem(&all, false), "");
}

#[test]
fn too_few_descriptors_are_said_with_the_cure() {
    let sources = Sources { set: vec![SECRET.to_owned()], ..Sources::default() };
    let host = Host { descriptors_max: 64, ..host() };
    let found = Settings::resolve(Layers::read(&sources).expect("valid"), &host, false).expect_err("64 is too few");
    assert!(found.to_string().contains("LimitNOFILE"), "{found}");
}

#[test]
fn with_tables_the_limit_of_descriptors_holds_for_each_shard() {
    let possible = |descriptors_max, shards| connections_possible(descriptors_max, true, shards);
    assert_eq!([possible(20_000, 2), possible(20_000, 26)], [2 * 19_872, 26 * 19_872]);
    assert_eq!(possible(256 + 32, 2), 0, "the process' own files need some, too");
    assert_eq!(possible(u64::MAX, 2), 2 * ((1 << 20) - 128), "the kernel gives no more to one table");
    for (shards, connections) in [(2, 1_000), (2, 500_000), (26, 500_000), (3, 1)] {
        let (wanted, more) = descriptors_wanted(true, shards, connections);
        assert!(
            more.is_none() && possible(wanted, shards) >= connections,
            "{connections} on {shards} shards: {wanted}"
        );
    }
    assert_eq!(descriptors_wanted(true, 2, 10_000_000), (1 << 20, Some(10)));
    assert_eq!(descriptors_wanted(false, 2, 500_000), (500_288, None));
}

#[test]
fn more_shards_than_cores_is_allowed_with_a_warning() {
    let settings = resolve(&[SECRET, "shards=8"], false).expect("allowed");
    assert_eq!(settings.shards, 8);
    assert_eq!(settings.warnings.len(), 1);
    assert_eq!(resolve(&[SECRET, "shards=0"], false).map(|settings| settings.shards), Ok(2));
}

#[test]
fn this_machine_can_be_asked() {
    let host = Host::read();
    assert!(!host.cpus.is_empty() && host.descriptors_max > 0 && !host.name.is_empty());
}

#[test]
fn balancers_are_named_as_networks() {
    let proxies = |set: &[&str]| {
        let set: Vec<&str> = [SECRET].iter().chain(set).copied().collect();
        resolve(&set, false).map(|settings| settings.proxies.map(|networks| networks.len()))
    };
    assert_eq!(proxies(&[]), Ok(None), "off, whatever is named");
    assert_eq!(proxies(&["listen.proxy_protocol=true"]), Ok(Some(6)));
    assert_eq!(proxies(&["listen.proxy_protocol=true", "listen.proxy_from=10.0.0.2, 2001:db8::/32"]), Ok(Some(2)));
    for from in ["10.0.0.1/8", "balancer.example", "10.0.0.0/40", ""] {
        let wrong = proxies(&["listen.proxy_protocol=true", &format!("listen.proxy_from={from}")]);
        let wrong = wrong.expect_err(from);
        assert!(wrong.0.iter().any(|line| line.contains("listen.proxy_from")), "{wrong:?}");
    }
}
