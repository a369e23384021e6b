"""Documentation of ``dtls_ruleset``. It runs on the controller, as action_plugins/dtls_ruleset.py: hosts need no Python."""

DOCUMENTATION = r"""
---
module: dtls_ruleset
short_description: Changes rules for packets, and takes them back if they lock the controller out
description:
  - >-
    Arms a dead-man on the host, loads the rules in one transaction, closes the connection, and confirms over a new one. If
    none can be made, the dead-man brings back what was before, and the task fails.
  - Only after the confirmation are the rules written for the next boot; a host that loses its power before boots the old ones.
  - >-
    Rules by which, as far as can be read from them, this very session would not get in are refused before anything happens.
  - >-
    Only a table of this name is touched; with iptables, chains whose names begin with it, and the jumps to them. What another
    backend has loaded of them is taken away together with that, and comes back with the dead-man. What is in
    force is found from the SHA-256 in the table's comment, so a second run changes nothing.
  - >-
    A run that was killed before the confirmation is undone by its dead-man. A run after it takes over from that dead-man,
    which cannot undo the later rules.
options:
  name:
    description: The table's name; with iptables what the chains' names begin with. Up to 16 small letters, digits and C(_).
    type: str
    required: true
  content:
    description:
      - With nft and fw4, what stands inside of C(table inet NAME).
      - >-
        With iptables, lines as of C(iptables-save) that begin with C(-A NAME-IN), C(-A NAME-OUT) or C(-A NAME-FWD), to which
        INPUT, OUTPUT and FORWARD jump, or another chain C(NAME-…). They are for IPv4 and IPv6; a line for one of them has C(-4)
        or C(-6) before it.
    type: str
    default: ""
  backend:
    description:
      - What loads the rules. V(auto) takes fw4 where it is, else nft, else iptables.
      - V(fw4) is nft, with the rules kept where OpenWrt's firewall4 includes them.
    type: str
    choices: [auto, nft, fw4, iptables-nft, iptables-legacy]
    default: auto
  rollback_after:
    description: Seconds from 5 to 600 in which a new connection has to be made, from when the rules are in force.
    type: int
    default: 30
  learn:
    description:
      - >-
        Seconds from 0 to 60 for which conntrack gets to know what is under way, before rules come into force that ask it. Without
        that the first such rules drop what is just now on its way to the host.
      - >-
        As long as an answer may take. Nothing is waited for where the rules say nothing of conntrack, or those that they replace
        did.
    type: int
    default: 3
  persist:
    description: Whether the rules are written to O(path). Loading it when the host boots is for a unit or a script of its own.
    type: bool
    default: true
  path:
    description:
      - Where they are written. By default C(/etc/dtls-guard/NAME.nft) or C(NAME.iptables), for
        C(iptables-restore --noflush), with fw4 C(/usr/share/nftables.d/ruleset-post/NAME.nft).
    type: str
    default: ""
  check_session:
    description: Whether rules are refused that seem to lock the session out. Not looked at over anything but ssh.
    type: bool
    default: true
  state:
    description: >-
      With V(absent), all rules of this name are removed, with a dead-man as well, and the file at O(path).
    type: str
    choices: [present, absent]
    default: present
  unreachable:
    description: With V(result), a host out of reach has RV(reached) false instead of an end of its play.
    type: str
    choices: [fail, result]
    default: fail
notes:
  - >-
    Supports check mode, in which rules for nft are checked on the host, and diff.
  - Needs root, and a connection of which Ansible can make a new one, such as ssh.
author:
  - sansdtls
"""

EXAMPLES = r"""
- name: Let nobody in but the controller
  dtls_ruleset:
    name: dtls_guard
    content: |
      chain input {
          type filter hook input priority 0; policy drop;
          ct state established,related accept
          iif "lo" accept
          ip saddr 192.0.2.1 tcp dport 22 accept
      }
"""

RETURN = r"""
reached:
  description: Whether the host answered.
  type: bool
  returned: always
confirmed:
  description: Whether the rules that are in force were confirmed over a new connection, now or before.
  type: bool
  returned: when it was reached
rolled_back:
  description: Whether they were taken back.
  type: bool
  returned: when it was reached
sha256:
  description: What stands in the table's comment.
  type: str
  returned: when it was reached
backend:
  description: What loads the rules.
  type: str
  returned: when it was reached
path:
  description: Where they are written.
  type: str
  returned: with state=present
"""
