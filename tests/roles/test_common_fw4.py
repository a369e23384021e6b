"""``dtls_ruleset`` beside OpenWrt's firewall4, of which there is a stand-in: no OpenWrt could be had."""

import pytest

from tests.roles.guarded import BETTER, GOOD, RULES, in_force, ruleset
from tests.roles.plays import Plays

FLEET = {"endpoints": 0, "devices": 1}

FW4 = """\
#!/bin/sh
# A stand-in for OpenWrt's firewall4, in its documented order of includes: ruleset-pre, its own table, ruleset-post.
rules() {
    echo 'table inet fw4'
    echo 'flush table inet fw4'
    cat /usr/share/nftables.d/ruleset-pre/*.nft 2>/dev/null
    echo 'table inet fw4 {'
    echo ' chain input {'
    echo '  type filter hook input priority filter; policy accept;'
    echo ' }'
    echo '}'
    cat /usr/share/nftables.d/ruleset-post/*.nft 2>/dev/null
}
case $1 in
check) rules | nft -c -f - ;;
start | reload) rules | nft -f - ;;
stop) nft delete table inet fw4 ;;
esac
"""


@pytest.fixture
def plays(fleet):
    return Plays(fleet)


def test_fw4_includes_the_rules_and_keeps_them(fleet, plays):
    device = fleet["device-1"]
    for folder in ("ruleset-pre", "ruleset-post"):
        (device.root / "usr/share/nftables.d" / folder).mkdir(parents=True, exist_ok=True)
    fw4 = device.root / "usr/sbin/fw4"
    fw4.write_text(FW4)
    fw4.chmod(0o755)
    try:
        device.ssh("fw4 start")
        told = plays.run(ruleset(GOOD, name="good"), ruleset(GOOD, name="again"), hosts="device-1")
        assert [told.of("device-1", name).state for name in ("good", "again")] == ["changed", "ok"]
        assert told.of("device-1", "good")["backend"] == "fw4"
        place = device.root / "usr/share/nftables.d/ruleset-post/guard.nft"
        assert place.read_text() == RULES.for_nft("guard", GOOD)
        for command in ("fw4 reload", "fw4 stop; fw4 start"):
            device.ssh(command)
            assert in_force(device, GOOD)
        fw4.write_text(FW4.replace("nft -c -f -", "false"))
        told = plays.run(ruleset(BETTER), hosts="device-1", status=2)
        assert "fw4 check fails, so it is as it was" in told.of("device-1", "rules")["msg"]
        assert place.read_text() == RULES.for_nft("guard", GOOD)
        fw4.write_text(FW4)
        told = plays.run(ruleset(BETTER), ruleset("", name="absent", state="absent"), hosts="device-1")
        assert told.of("device-1", "rules").state == "changed"
        assert not place.exists()
    finally:
        fw4.unlink()
