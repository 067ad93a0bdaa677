import pytest

from agentmem.records import Role
from agentmem.training.values import is_heldout
from benchmarks.scripts import GROUPS, KNOWN_ASKED, contains, script, scripts

USERS = scripts(60, seed=3)


def told(user):
    """Every value that the user's sessions tell, with the session's number."""
    return [(number, said) for number, session in enumerate(user.sessions) for said in session if said.value]


def test_a_script_depends_on_seed_and_number_only():
    assert scripts(5, seed=3) == USERS[:5]
    assert script(4, seed=3) == USERS[4]
    assert script(4, seed=4) != USERS[4]


def test_users_leave_at_least_forty_memories():
    assert min(2 * sum(map(len, user.sessions)) for user in USERS) >= 40


def test_three_sessions_and_every_kind_of_question():
    for user in USERS:
        assert len(user.sessions) == 3
        kinds = [question.kind for question in user.questions]
        assert {kind: kinds.count(kind) for kind in kinds} == {"known": KNOWN_ASKED, "corrected": 2, "unknown": 2}


def test_all_values_were_held_out_of_training():
    plain = {"and", "Street", "Road", "Lane", "Hill", "Bay", "Park", "Avenue"}
    for user in USERS:
        for _, said in told(user):
            words = [word for word in said.value.replace(",", " ").split() if word not in plain]
            assert words
            assert all(is_heldout(word) for word in words)


def test_known_values_are_told_once_and_never_corrected():
    for user in USERS:
        for question in user.questions:
            if question.kind == "known":
                assert [said.value for _, said in told(user)].count(question.value) == 1
                assert question.value in question.answer
                assert question.old is None


def test_corrections_come_in_the_last_session_and_after_the_old_value():
    for user in USERS:
        for question in user.questions:
            if question.kind == "corrected":
                sessions = {said.value: number for number, said in told(user)}
                assert sessions[question.value] == 2
                assert sessions[question.old] < 2
                assert question.value != question.old
                assert contains(question.answer, question.value)


def test_unknown_relations_are_never_told():
    for user in USERS:
        for question in user.questions:
            if question.kind == "unknown":
                assert question.answer.endswith("You have not told me.")
                assert question.value == ""
                assert question.relation not in {said.relation for _, said in told(user)}


def test_questions_were_asked_in_earlier_sessions_too():
    for user in USERS:
        asked = [
            said.text for session in user.sessions for said in session if "?" in said.text or "ell me" in said.text
        ]
        assert len(asked) >= 4


def test_tools_speak_only_where_a_message_list_is_sent_and_every_group_is_told():
    spoken = {said.role for user in USERS for session in user.sessions for said in session}
    assert spoken == {Role.USER, Role.TOOL}
    for user in USERS:
        assert all(said.role is Role.USER for said in user.sessions[0])
        assert any(said.role is Role.TOOL for said in user.sessions[1])
    assert {question.group for user in USERS for question in user.questions if question.kind == "known"} == set(GROUPS)


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("Your dog is called Rex.", "Rex", True),
        ("Your dog is called Rexo.", "Rex", False),
        ("The code is K7-402.", "K7-402", True),
        ("The code is K7x402.", "K7.402", False),
        ("It is K7-4021.", "K7-402", False),
        ("Your list is a, b and c.", "a, b and c", True),
        ("your dog is called rex.", "Rex", False),
    ],
)
def test_contains_looks_for_whole_words(text, value, found):
    assert contains(text, value) is found
