"""Documentation of ``dtls_switch``. It runs on the controller, as action_plugins/dtls_switch.py."""

DOCUMENTATION = r"""
---
module: dtls_switch
short_description: Switches the endpoint to a release, proves that it serves, and switches back if it does not
description:
  - >-
    Makes O(release) the current one, restarts the service, and handshakes with each of its listeners, as a device would. Only if that
    succeeds are release and O(endpoint.files) kept as confirmed. If not, all of them are put back, the one before is started and
    proved, and the task fails.
  - >-
    What is to be done follows from comparing what is there, and what runs, with what was confirmed; so nothing depends on a run that
    ended half-way. It happens on the host, under a lock, and is finished also if the controller vanishes.
  - >-
    Where only O(endpoint.credentials) have changed the service reads them again, and nothing restarts.
options:
  state:
    description:
      - V(current) makes O(release) the one that serves.
      - V(previous) goes back to the one that was confirmed before the one that is, with the files it had.
      - V(verified) proves that what is confirmed serves, and changes nothing; where nothing is, RV(installed) is false.
      - V(absent) stops the service, and removes O(endpoint.files), O(endpoint.base) and O(purge).
    type: str
    choices: [current, previous, verified, absent]
    default: current
  release:
    description: Its name, as of M(dtls_release).
    type: str
    default: ""
  endpoint:
    description: What the endpoint is on its host, whatever is to be done with it.
    type: dict
    default: {}
    suboptions:
      base:
        description: Where releases are on the host.
        type: str
        default: /opt/dtls-endpoint
      manager:
        description: What starts the service.
        type: str
        choices: [systemd, init]
        default: systemd
      service:
        description: The unit of the service, or the path of its init script.
        type: str
        default: dtls-endpoint.service
      units:
        description: All units, that of the service last.
        type: list
        elements: str
        default: []
      pidfile:
        description: Where an init script writes the number of the process.
        type: str
        default: /run/dtls-endpoint/pid
      files:
        description: What belongs together with a release, and goes back with it. No secrets, because they are copied.
        type: list
        elements: str
        default: []
      credentials:
        description: Files that the service is to read again when they have changed.
        type: list
        elements: str
        default: []
      listeners:
        description: Addresses with ports that have to answer, as seen on the host; none = only the process is looked at.
        type: list
        elements: str
        default: []
      identity:
        description: As whom to connect.
        type: str
        default: ""
      psk_file:
        description: The key for that, a file on the host.
        type: str
        default: ""
      user:
        description: Who connects.
        type: str
        default: dtls-endpoint
      config:
        description: The service's configuration.
        type: str
        default: /etc/dtls-endpoint/endpoint.toml
      health_timeout:
        description: Seconds that a start may take, and then the handshakes.
        type: int
        default: 30
      keep:
        description: So many releases stay installed; the one that serves and the one before always do.
        type: int
        default: 3
  purge:
    description: With O(state=absent), what else is removed.
    type: list
    elements: str
    default: []
  pending:
    description: In check mode, whether tasks before would have changed what the service is started with.
    type: bool
    default: false
  unreachable:
    description: With V(result), a host out of reach has RV(reached) false instead of an end of its play.
    type: str
    choices: [fail, result]
    default: fail
author:
  - sansdtls
"""

EXAMPLES = r"""
- name: Let the new release serve
  dtls_switch:
    release: "{{ installed.release }}"
    endpoint:
      units: [dtls-endpoint.socket, dtls-endpoint.service]
      files: [/etc/dtls-endpoint/endpoint.toml]
      listeners: ["127.0.0.1:5684"]
      identity: health-probe
      psk_file: /etc/dtls-endpoint/psk.d/fleet.psk
"""

RETURN = r"""
reached:
  description: Whether the host answered.
  type: bool
  returned: always
release:
  description: The release that serves now.
  type: str
  returned: when it was reached
before:
  description: The one that did before; empty if there was none.
  type: str
  returned: when it was reached
reasons:
  description: Why the service was restarted.
  type: list
  elements: str
  returned: when it was reached
restarted:
  description: Whether it was.
  type: bool
  returned: when it was reached
reloaded:
  description: Whether it has read its credentials again.
  type: bool
  returned: when it was reached
installed:
  description: Whether anything was ever confirmed there.
  type: bool
  returned: when it was reached
removed:
  description: Releases that were removed.
  type: list
  elements: str
  returned: when it was reached
"""
