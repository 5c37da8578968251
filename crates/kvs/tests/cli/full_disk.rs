//! A disk that is full: a small file system of its own for the built binary.

use std::process::{Command, Stdio};

use crate::support::{command, skipped};

/// Runs a script in a namespace with a file system of 24 MiB at `$DIR`; `None` where that is not allowed.
fn on_a_small_disk(script: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=24m none \"$DIR\" || exit 77\ncd \"$DIR\"\n";
    let mut shell = Command::new("unshare");
    shell.args(["--map-root-user", "--user", "--mount", "sh", "-c", &format!("{mount}{script}")]);
    let binary = command(dir.path(), &[""; 0]);
    shell
        .env("DIR", dir.path())
        .env("KVS", binary.get_program())
        .env_remove("KVS_DIR")
        .env_remove("RUST_LOG");
    let output = match shell.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return skipped("unshare is not installed, so there is no small disk to fill");
        }
        other => other.unwrap(),
    };
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(77) || message.starts_with("unshare:") {
        return skipped(&format!("no file system can be mounted here: {message}"));
    }
    assert!(output.status.success(), "{message}\n{}", String::from_utf8_lossy(&output.stdout));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn on_a_full_disk_reads_and_removes_work_and_space_comes_back() {
    let script = r#"
        fail() { echo "$*" >&2; exit 1; }
        head -c 200000 /dev/zero | tr '\0' 'v' > value
        n=0 code=0
        while [ $code -eq 0 ]; do
            "$KVS" --dir s set "key $n" --file value 2> error || code=$?
            [ $code -ne 0 ] || n=$((n + 1))
            [ $n -lt 500 ] || fail "the disk does not fill"
        done
        echo "$n sets, then $code: $(cat error)"
        # Everything that was acknowledged is there.
        i=0
        while [ $i -lt $n ]; do
            "$KVS" --dir s get -n "key $i" | cmp - value || fail "key $i"
            i=$((i + 1))
        done
        "$KVS" --dir s get "key $n" | grep -q '^Key not found$' || fail "the one that failed"
        # Removes work, and with them space comes back.
        i=0
        while [ $i -lt $n ]; do
            [ $((i % 4)) -eq 0 ] || "$KVS" --dir s rm "key $i" || fail "rm key $i"
            i=$((i + 1))
        done
        "$KVS" --dir s compact -q > /dev/null || fail "compact"
        i=0
        while [ $i -lt $((n / 2)) ]; do
            "$KVS" --dir s set "new $i" --file value || fail "set new $i"
            i=$((i + 1))
        done
        i=0
        while [ $i -lt $n ]; do
            if [ $((i % 4)) -eq 0 ]; then
                "$KVS" --dir s get -n "key $i" | cmp - value || fail "key $i at the end"
            else
                "$KVS" --dir s get "key $i" | grep -q '^Key not found$' || fail "key $i came back"
            fi
            i=$((i + 1))
        done
        "$KVS" --dir s verify
    "#;
    let Some(said) = on_a_small_disk(script) else { return };
    let first = said.lines().next().unwrap();
    assert!(first.contains("then 3: kvs: no space left"), "{said}");
    assert!(said.lines().last().unwrap().ends_with(" 0 damaged"), "{said}");
}
