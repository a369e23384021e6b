"""Documentation of ``dtls_file``. It runs on the controller, as action_plugins/dtls_file.py: hosts need no Python."""

DOCUMENTATION = r"""
---
module: dtls_file
short_description: Puts content in a file of any host with a POSIX shell
description:
  - Sends content by standard input, so that no process list, temporary file of Ansible or output shows it.
  - >-
    A file is replaced whole or not at all: what arrived is compared with what was sent before it is renamed, in the same
    directory, and it is on the disk then.
  - A run that was killed leaves at most a file I(.NAME.dtls.PID), mode 0600, which the next run removes.
  - Directories and links can be made as well, because a host without Python has no other module for them.
options:
  dest:
    description: Absolute path. What is there as another kind of thing is not replaced.
    type: str
    required: true
  content:
    description:
      - What is to be in the file. Bytes that are no text come as V(!!binary), or from the filter P(ansible.builtin.b64decode#filter).
    type: raw
  content_from:
    description: The same as a list of lines, each of which gets a line end.
    type: list
    elements: str
  mode:
    description: Permissions as quoted digits. By default V("0600"), of a directory V("0700").
    type: str
  owner:
    description: User, by name or number. By default it stays, or is who runs the task.
    type: str
    default: ""
  group:
    description: As O(owner).
    type: str
    default: ""
  validate:
    description:
      - A command in which C(%s) stands for the file before it is renamed; it stays as it was unless the status is 0.
      - Of a secret file, nothing that the command prints is shown. Not run in check mode.
    type: str
    default: ""
  previous:
    description: A path to which the old content goes, whole, before the new one comes. Only when the content changes.
    type: str
    default: ""
  secret:
    description: Whether output shows no more of the content than its length and whether it is another.
    type: bool
    default: true
  state:
    description: What is to be at O(dest). A directory is not removed.
    type: str
    choices: [present, absent, directory, link]
    default: present
  target:
    description: Where a link points to.
    type: str
    default: ""
  unreachable:
    description: With V(result), a host out of reach has RV(reached) false instead of an end of its play.
    type: str
    choices: [fail, result]
    default: fail
notes:
  - Supports check mode and diff.
author:
  - sansdtls
"""

EXAMPLES = r"""
- name: Give the device its key
  dtls_file:
    dest: /etc/dtls/psk
    content_from: "{{ {inventory_hostname: master | dtls_psk_derive(inventory_hostname, 3)} | dtls_psk_lines }}"
    previous: /etc/dtls/psk.previous
    unreachable: result
  register: pushed

- name: Configure the endpoint
  dtls_file:
    dest: /etc/dtls-endpoint/endpoint.toml
    content: "{{ lookup('ansible.builtin.template', 'endpoint.toml.j2') }}"
    mode: "0640"
    group: dtls-endpoint
    secret: false
    validate: /opt/dtls-endpoint/current/bin/dtls-endpoint check --config %s
"""

RETURN = r"""
reached:
  description: Whether the host answered.
  type: bool
  returned: always
differing:
  description: What was other than asked for, of state, content, mode, owner, group.
  type: list
  elements: str
  returned: when it was reached
sha256:
  description:
    - The SHA-256 of the content. Of a secret one under a key that this run of Ansible has drawn, so equal only within it.
  type: str
  returned: with state=present
size:
  description: Bytes of the content.
  type: int
  returned: with state=present
previous:
  description: Where the old content went.
  type: str
  returned: when it went there
"""
