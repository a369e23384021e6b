"""Documentation of ``dtls_release``. It runs on the controller, as action_plugins/dtls_release.py."""

DOCUMENTATION = r"""
---
module: dtls_release
short_description: Installs a release of the endpoint's program beside the others
description:
  - >-
    A release is what a folder of wheels on the controller holds; its name is a digest of their names and contents. It is
    installed at O(base)C(/releases/NAME), without an index, and without touching the release that serves.
  - Nothing is sent where it is there already. What a run has left half-way is made anew.
options:
  wheelhouse:
    description:
      - >-
        The folder, with a wheel of C(sansdtls) and all its dependencies for the hosts' Pythons. With a wheel of C(pip) among them
        hosts need neither C(pip) nor Debian's C(python3-venv).
    type: str
    required: true
  base:
    description: Where releases are on the host.
    type: str
    default: /opt/dtls-endpoint
  python:
    description: The host's Python, 3.11 or newer.
    type: str
    default: python3
  unreachable:
    description: With V(result), a host out of reach has RV(reached) false instead of an end of its play.
    type: str
    choices: [fail, result]
    default: fail
author:
  - sansdtls
"""

EXAMPLES = r"""
- name: Install the release
  dtls_release:
    wheelhouse: "{{ playbook_dir }}/wheelhouse"
  register: installed
"""

RETURN = r"""
reached:
  description: Whether the host answered.
  type: bool
  returned: always
release:
  description: Its name.
  type: str
  returned: always
version:
  description: The version of sansdtls in it.
  type: str
  returned: always
"""
