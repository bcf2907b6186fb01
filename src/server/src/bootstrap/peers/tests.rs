use super::*;
use quorate_api::MemberId;

fn reply(cluster: &str, body: &str) -> Reply {
    Reply {
        cluster: Some(cluster.to_owned()),
        quorate: None,
        body: body.to_owned().into(),
    }
}

#[test]
fn a_list_of_members_is_read_of_etcd_writes_it() {
    let body = concat!(
        r#"[{"id":10276657743932975437,"peerURLs":["http://10.0.0.1:2380"],"isLearner":true},"#,
        r#"{"id":7,"peerURLs":["http://10.0.0.2:2380"],"name":"m1","clientURLs":["http://10.0.0.2:2379"],"new":{"x":1}},"#,
        r#"{"id":8,"peerURLs":null}]"#,
        "\n"
    );
    let told = membership(&reply("cdf818194e3a8c32", body)).unwrap();
    assert_eq!(told.cluster, ClusterId(0xcdf8_1819_4e3a_8c32));
    let ids: Vec<_> = told
        .members
        .iter()
        .map(|member| MemberId(member.id).to_string())
        .collect();
    assert_eq!(ids, ["7", "8", "8e9e05c52164694d"], "by id");
    assert_eq!(told.members[0].client_ur_ls, ["http://10.0.0.2:2379"]);
    assert_eq!(
        (told.members[1].name.as_str(), told.members[1].peer_ur_ls.len()),
        ("", 0)
    );
    assert!(told.members[2].is_learner && !told.members[0].is_learner);
}

#[test]
fn an_answer_that_is_none_is_not_believed() {
    let one = r#"[{"id":7,"peerURLs":["http://10.0.0.2:2380"]}]"#;
    for (cluster, body, reason) in [
        ("1", "", "the body is not what /members says in etcd: EOF while parsing"),
        ("1", "404 page not found\n", "the body is not what /members says"),
        ("1", r#"{"id":7}"#, "the body is not what /members says"),
        ("1", r#"[{"id":"7"}]"#, "the body is not what /members says"),
        ("1", r#"[{"id":-7}]"#, "the body is not what /members says"),
        (
            "1",
            r#"[{"id":18446744073709551616}]"#,
            "the body is not what /members says",
        ),
        ("1", "[]", "the list of members is empty"),
        ("1", r#"[{"id":0}]"#, "the list has a member without id"),
        (
            "1",
            r#"[{"id":1},{"id":2},{"id":1}]"#,
            "the list has a member without id, or two of the same",
        ),
        ("", one, "there is no cluster id"),
        ("0", one, "there is no cluster id"),
        ("+1", one, "there is no cluster id"),
        ("xyz", one, "there is no cluster id"),
        ("11111111111111111", one, "there is no cluster id"),
    ] {
        let refused = membership(&reply(cluster, body)).unwrap_err().whole();
        assert!(refused.starts_with(reason), "{cluster:?} {body}: {refused}");
    }
    let bare = Reply {
        cluster: None,
        ..reply("", one)
    };
    assert!(matches!(membership(&bare), Err(Failure::ClusterId)));
    membership(&reply("1", one)).unwrap();
}

#[test]
fn versions_are_read_with_and_without_storage() {
    for body in [
        r#"{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}"#,
        r#"{"etcdserver":"3.7.1","etcdcluster":"3.4.0","storage":"3.5.0"}"#,
    ] {
        assert_eq!(versions(&reply("1", body)).unwrap().cluster, "3.4.0");
    }
    assert!(versions(&reply("1", "not_decided")).is_err());
}
