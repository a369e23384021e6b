"""Documentation of ``dtls_run``. It runs on the controller, as action_plugins/dtls_run.py: hosts need no Python for it."""

DOCUMENTATION = r"""
---
module: dtls_run
short_description: Runs a command on any host with a POSIX shell
description:
  - For commands that an inventory names, such as the one that makes a device read its key again.
  - Needs no terminal there, as M(ansible.builtin.raw) does, and makes a lost host a result.
options:
  command:
    description:
      - A line for C(sh). Everybody on the host can see it, so no secret is in it.
      - What it leaves in the background is not waited for, and has no output from then on.
    type: str
    required: true
  timeout:
    description: Seconds after which it is ended, and the task fails.
    type: int
    default: 60
  unreachable:
    description: With V(result), a host out of reach has RV(reached) false instead of an end of its play.
    type: str
    choices: [fail, result]
    default: fail
notes:
  - Skipped in check mode.
author:
  - sansdtls
"""

EXAMPLES = r"""
- name: Have the device use its key
  dtls_run:
    command: killall -HUP sensord
    unreachable: result
"""

RETURN = r"""
reached:
  description: Whether the host answered.
  type: bool
  returned: always
said:
  description: What it printed, standard error among it.
  type: str
  returned: when it was run
rc:
  description: Its status, 0; with another the task fails.
  type: int
  returned: when it was run
"""
