"""Documentation of ``dtls_filters``. It runs on the controller, as action_plugins/dtls_filters.py."""

DOCUMENTATION = r"""
---
module: dtls_filters
short_description: Makes the filters of this collection known by their short names
description:
  - >-
    After a task with it, even one that is skipped, templates may say P(sansdtls.dtls.dtls_psk_derive#filter) without
    C(sansdtls.dtls.) before it. The role dtls_common has such a task.
  - Does nothing on the host, and makes no connection.
options: {}
notes:
  - Changes nothing, so it runs in check mode as well.
author:
  - sansdtls
"""

EXAMPLES = r"""
- name: Make the filters known by their short names
  dtls_filters:
"""

RETURN = r""" # """
