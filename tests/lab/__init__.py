"""A fleet of hosts on this machine, for the roles: booted systemd hosts, and devices with nothing but a shell.

::

    controller 10.77.0.1 ──┐                                       namespace lab-…-ctl: Ansible runs in it
                         bridge ── endpoint-1 10.77.0.11           systemd-nspawn --boot, Debian 12 or 13
                           ├────── endpoint-2 10.77.0.12
                           ├────── device-1   10.77.0.21           busybox, dropbear, nft: no Python
                           └────── …

Everything carries the number of this process in its name, and is gone when the fleet is closed. Needs root, and the
Debian packages that ``images.PROGRAMS`` names.
"""
