"""Documentation of ``dtls_facts``. It runs on the controller, as action_plugins/dtls_facts.py: hosts need no Python."""

DOCUMENTATION = r"""
---
module: dtls_facts
short_description: Finds out in one round trip what a host is and has
description:
  - Needs nothing there but a POSIX shell.
options:
  as_facts:
    description: Whether the answers become facts as well, each with C(dtls_) before its name.
    type: bool
    default: false
  unreachable:
    description: With V(result), a host out of reach has RV(reached) false instead of an end of its play.
    type: str
    choices: [fail, result]
    default: fail
notes:
  - Changes nothing, so it runs in check mode as well.
author:
  - sansdtls
"""

EXAMPLES = r"""
- name: Look at the host
  dtls_facts:
  register: host

- name: Refuse a clock that is wrong
  ansible.builtin.assert:
    that: host.clock_offset | abs < 60
"""

RETURN = r"""
reached:
  description: Whether the host answered; what follows is returned only then.
  type: bool
  returned: always
init:
  description: What starts services, one of systemd, busybox, openrc, procd, unknown.
  type: str
  returned: success
backend:
  description: What O(sansdtls.dtls.dtls_ruleset#module:backend) with V(auto) takes; empty if there is nothing.
  type: str
  returned: success
nft:
  description: Version of nft; empty if it is not there. The same for iptables_legacy and iptables_nft.
  type: str
  returned: success
iptables_legacy:
  description: See RV(nft).
  type: str
  returned: success
iptables_nft:
  description: See RV(nft).
  type: str
  returned: success
fw4:
  description: Whether it has OpenWrt's firewall4.
  type: bool
  returned: success
uci:
  description: Whether it has OpenWrt's configuration.
  type: bool
  returned: success
python:
  description: Path of Python 3, and python_version its version; empty if it is not there.
  type: str
  returned: success
python_version:
  description: See RV(python).
  type: str
  returned: success
ssh:
  description: >-
    Addresses and ports of this very connection (client, client_port, server, server_port), and network, where the client may come from
    next time: its address, in IPv6 the /64 around it. Empty over anything but ssh.
  type: dict
  returned: success
clock:
  description: Seconds since 1970 on the host.
  type: int
  returned: success
clock_offset:
  description: By how many seconds the host's clock is ahead of the controller's, at least; 0 if it may be right.
  type: float
  returned: success
kernel:
  description: Release of the kernel.
  type: str
  returned: success
machine:
  description: Architecture, such as x86_64.
  type: str
  returned: success
hostname:
  description: What the host calls itself.
  type: str
  returned: success
distribution:
  description: ID of /etc/os-release, and distribution_version its VERSION_ID; empty without that file.
  type: str
  returned: success
distribution_version:
  description: See RV(distribution).
  type: str
  returned: success
uid:
  description: Number of the user as whom tasks run.
  type: int
  returned: success
missing:
  description: Small programs that the plugins use and that are not there.
  type: list
  elements: str
  returned: success
"""
