"""The record of what tasks did, and the list of those that never showed what they should."""

import pytest

from tests.lab import recorder
from tests.lab.fleet import Fleet

TASKS = """
- name: Write it
  ansible.builtin.copy:
    content: "{{ content }}"
    dest: /etc/written
    mode: "0644"
  notify: Tell of it
- name: Look at it
  ansible.builtin.command: cat /etc/written
  changed_when: false
  register: seen
- name: Decide by it
  block:
    - name: Refuse it
      ansible.builtin.fail:
        msg: refused
      when: seen.stdout == 'bad'
  rescue:
    - name: Remember the refusal
      ansible.builtin.set_fact:
        refused: true
# never changed: nothing makes it
- name: Remove what is never there
  ansible.builtin.file:
    path: /etc/never
    state: absent
- name: Look whether it would be written # never changed: it is right already
  ansible.builtin.file:
    path: /etc/written
    mode: "0644"
  check_mode: true
- name: Go on at once
  ansible.builtin.meta: flush_handlers
"""
HANDLERS = """
- name: Tell of it
  ansible.builtin.command: "true"
  changed_when: true
"""


@pytest.fixture(scope="module")
def fleet():
    with Fleet(endpoints=1, devices=0) as fleet:
        yield fleet


@pytest.fixture
def roles(tmp_path):
    for name, text in (("tasks", TASKS), ("handlers", HANDLERS)):
        (tmp_path / "roles" / "writer" / name).mkdir(parents=True)
        (tmp_path / "roles" / "writer" / name / "main.yml").write_text(text)
    (tmp_path / "play.yml").write_text("- {hosts: dtls_endpoints, gather_facts: false, roles: [writer]}")
    return tmp_path / "roles"


def test_what_each_task_did_is_recorded_and_what_never_happened_is_told(fleet, roles):
    def run(content, *options):
        return fleet.playbook(
            roles.parent / "play.yml",
            "-e",
            f"content={content}",
            *options,
            record=True,
            ANSIBLE_ROLES_PATH=str(roles),
            ANSIBLE_PIPELINING="True",
        )

    def missing(*records):
        return recorder.never_seen(roles, [result for record in records for result in record.results])

    first = run("good")
    assert [(result.task, result.state) for result in first.results] == [
        ("Write it", "changed"),
        ("Look at it", "ok"),
        ("Refuse it", "skipped"),
        ("Remove what is never there", "ok"),
        ("Look whether it would be written", "ok"),
        ("Tell of it", "changed"),
    ]
    assert {result.role for result in first.results} == {"writer"}
    assert first.hosts_changed() == {"endpoint-1": 2}
    with pytest.raises(AssertionError, match=r"endpoint-1: Write it .*main.yml:2"):
        recorder.assert_unchanged(first)
    assert missing(first) == [
        "writer: Write it (main.yml:2): never ok",
        "writer: Refuse it (main.yml:14): never failed",
        "writer: Remember the refusal (main.yml:19): never ok",
    ]

    again = run("good")
    recorder.assert_unchanged(again)
    bad = run("bad")
    assert bad.of("failed")[0].task == "Refuse it"
    assert not missing(first, again, bad)
    assert set(first.results) <= set(recorder.everything)


def test_what_ran_in_check_mode_is_recorded_as_such_and_not_taken_for_the_real_thing(fleet, roles):
    record = fleet.playbook(
        roles.parent / "play.yml",
        "--check",
        "-e",
        "content=other",
        record=True,
        ANSIBLE_ROLES_PATH=str(roles),
        ANSIBLE_PIPELINING="True",
    )
    assert all(result.check for result in record.results)
    assert len(recorder.never_seen(roles, record.results)) == len(recorder.never_seen(roles, []))


def test_a_run_without_a_task_is_not_taken_for_one_that_changed_nothing():
    with pytest.raises(AssertionError, match="no task ran"):
        recorder.assert_unchanged(recorder.Record([], ""))


def test_a_comment_is_of_the_task_below_it_and_of_no_other(roles):
    def wanted():
        return {task.name: task.wanted() for task in recorder.tasks_of(roles)}

    before = wanted()
    assert before["Remove what is never there"] == {"ok"}
    assert before["Remember the refusal"] == {"ok"}
    main = roles / "writer/tasks/main.yml"
    main.write_text(main.read_text().replace("# never changed: nothing", "# is it that nothing"))
    assert wanted() == before | {"Remove what is never there": {"changed", "ok"}}


def test_what_stood_in_that_line_of_a_changed_copy_is_another_task(roles):
    task = next(recorder.tasks_of(roles))
    seen = [
        recorder.Result(
            role="writer", task=name, action=task.action, place=f"{task.file}:{task.line}", host="endpoint-1",
            state=state, check=False, seconds=None,
        )
        for name, state in ((task.name, "ok"), ("Something else", "changed"))
    ]  # fmt: skip
    assert recorder.never_seen(roles, seen)[0] == "writer: Write it (main.yml:2): never changed"
