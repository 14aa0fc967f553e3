"""A reload reads the configuration again: what changes, what cannot, and what is wrong."""

import http.client

from verbs_rig import verbs


def test_the_configuration_is_read_again(tmp_path):
    """New values reach the workers, another number of workers is a change of size, what cannot change is named."""
    file = tmp_path / "zcluster.toml"
    file.write_text("workers = 1\nboot-timeout = 30\nlimit-request-line = 4000\n")
    with verbs(tmp_path, "--lanes=16", workers=None) as it:
        it.whole(1, 1)
        it.write(2)
        file.write_text('workers = 2\nboot-timeout = 40\nlimit-request-line = 100\nname = "other"\n')
        it.cluster.command_line("reload", "--wait")
        it.whole(2, 2)
        for line in (
            "the reload changes workers from 1 to 2",
            r"the reload changes boot-timeout from 30\.0 to 40\.0",
            "the reload changes limit-request-line from 4000 to 100",
            "name stays '', not 'other', until a new start: it is found by it",
            "scaled from 1 to 2 workers",
        ):
            it.cluster.wait_log(line)
        connection = http.client.HTTPConnection(*it.cluster.address, timeout=15)
        connection.request("GET", "/" + "x" * 200)
        assert connection.getresponse().status == 414
        connection.close()
        log = it.cluster.end()
    assert log.count("the reload changes") == 3
    assert log.count("scaled from") == 1


def test_a_configuration_that_cannot_be_used(tmp_path):
    """The reload fails in the words of `run`; code, workers and later masters are as before; mended, it is taken."""
    file = tmp_path / "zcluster.toml"
    with verbs(tmp_path) as it:
        before = it.whole(2, 1)
        it.write(2)
        for text, why in (
            ("keep-alive = 5\nkeep-alife = 5\n", "zcluster.toml:2: "),
            ("lanes = 2000\nlimit-request-line = 1\n", "zcluster.toml:2: "),
            ("workers = [", "zcluster.toml:1: "),
        ):
            file.write_text(text)
            done = it.cluster.command_line("reload", "--wait", code=1)
            assert f"the configuration was read again, and cannot be used: {why}" in done.stderr
        assert [w["id"] for w in it.whole(2, 1)["workers"]] == [w["id"] for w in before["workers"]]
        file.write_text('keep-alive = 7\nlog-level = "error"\n')
        it.cluster.command_line("reload", "--wait")
        assert it.about()["version"] == 2
        log = it.cluster.end()
    assert "stopping" not in log  # the launcher's info
    assert log.count("left as it was told") <= 2  # the master's, of the workers of generation 1 at most
