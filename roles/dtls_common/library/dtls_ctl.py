"""Documentation of ``dtls_ctl``. It runs on the controller, as action_plugins/dtls_ctl.py: hosts need no Python for it."""

DOCUMENTATION = r"""
---
module: dtls_ctl
short_description: Runs the endpoint's program on its host
description:
  - Runs C(dtls-endpoint), asks for JSON where it has it, and returns that as data.
  - >-
    Commands are V(keys add), V(keys rotate), V(keys retire), V(keys remove), V(keys import), V(keys list), V(status),
    V(doctor), V(check), V(reload) and V(handoff). What would print keys is refused.
options:
  args:
    description:
      - The command and its arguments. Everybody on the host can see them, so no key is among them; see O(stdin).
      - C(--config) and C(--json) come to them.
    type: list
    elements: str
    required: true
  stdin:
    description: What goes to its standard input, such as a key for C(--key-file -).
    type: raw
    default: ""
  config:
    description: The endpoint's configuration. Left out if O(args) names one or other keys; empty = none.
    type: str
    default: /etc/dtls-endpoint/endpoint.toml
  program:
    description: The program.
    type: str
    default: /opt/dtls-endpoint/current/bin/dtls-endpoint
  accept:
    description: Exit statuses that are no failure. C(status) ends with 1 if the service is not ready.
    type: list
    elements: int
    default: [0]
  unreachable:
    description: With V(result), a host out of reach has RV(reached) false instead of an end of its play.
    type: str
    choices: [fail, result]
    default: fail
notes:
  - >-
    In check mode, what changes keys is rehearsed (C(--dry-run)), what asks is done, C(handoff) and C(reload) are skipped; and where the
    program is not there yet, all are skipped.
author:
  - sansdtls
"""

EXAMPLES = r"""
- name: Accept the next key beside the current one
  dtls_ctl:
    args: [keys, add, sensor-7, --next, --key-file, "-", --reload]
    stdin: "{{ key }}"

- name: Ask who has used which key
  dtls_ctl:
    args: [status, --identities]
  register: identities
"""

RETURN = r"""
reached:
  description: Whether the host answered.
  type: bool
  returned: always
answer:
  description: >-
    What the program printed: its JSON, of C(status --identities) the list of identities, of what has no JSON a dictionary with C(lines).
  type: raw
  returned: when it was run
status:
  description: Its exit status.
  type: int
  returned: when it was run
errors:
  description: The lines of its standard error.
  type: list
  elements: str
  returned: when it was run
"""
