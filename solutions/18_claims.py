# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 18: Claims on trial
#
# Four exercises for the chapter [Claims on trial](../notebooks/18_claims.ipynb), about an hour. The
# last one is yours: choose a claim, write its rule, and only then look.
#
# Each ends with a check. It runs your function, first on numbers you can do by hand, and if the
# result is off, it says which idea would lead there. Any correct solution passes, however it is
# written.
#
# | | exercise | difficulty | importance | minutes |
# |---|---|---|---|---|
# | 1 | Percent and times | ●○○○○ | ●●●●● | 10 |
# | 2 | The verdict of an interval | ●●○○○ | ●●●●● | 10 |
# | 3 | Can it say no? | ●●○○○ | ●●●●● | 15 |
# | 4 | A claim of your own on trial | ●●●○○ | ●●●●● | 25 |

# %%
from collections.abc import Sequence

from moe_lite.course import checks, ledger

# %% [markdown]
# ## 1. Percent and times
#
# *Difficulty ●○○○○ · importance ●●●●● · 10 minutes*
#
# One model takes `slow` hours, the other `fast` hours to the same loss. Give three numbers: how
# many *times* as fast it is, how many percent *faster*, and how many percent of the time it
# *saves*.
#
# By hand: 8 hours and 2. Four times as fast, 300% faster, 75% saved.
#
# <details>
# <summary>Hint 1</summary>
#
# "Faster" and "saved" are differences, the one of speeds and the other of times.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# A speed is one over a time. Both differences are shares of the *slow* model's.
#
# </details>


# %%
def say_it_three_ways(slow: float, fast: float) -> tuple[float, float, float]:
    """Return times as fast, percent faster, and percent of the time saved."""
    ### BEGIN SOLUTION
    return slow / fast, 100 * (slow / fast - 1), 100 * (1 - fast / slow)
    ### END SOLUTION


# %%
checks.check_say_it_three_ways(say_it_three_ways)

# %% [markdown]
# ## 2. The verdict of an interval
#
# *Difficulty ●●○○○ · importance ●●●●● · 10 minutes*
#
# The claim holds in the range from `least` to `most`, ends included. Our interval is from `low` to
# `high`. Return `"holds"`, `"does not hold"` or `"undecided"`.
#
# By hand, "at least 1.5 times as fast": 1.6 to 2.0 holds, 0.9 to 1.1 does not, and 1.0 to 2.0
# is undecided, whatever its middle.
#
# <details>
# <summary>Hint 1</summary>
#
# Ask for the *whole* interval both times: all inside, or all outside.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# All outside means: it ends before the range begins, or begins after the range has ended.
#
# </details>


# %%
def judge(low: float, high: float, least: float, most: float) -> str:
    """Return the verdict of an interval on a claim: "holds", "does not hold" or "undecided"."""
    ### BEGIN SOLUTION
    if least <= low and high <= most:
        return "holds"
    return "does not hold" if high < least or low > most else "undecided"
    ### END SOLUTION


# %%
checks.check_judge(judge)

# %% [markdown]
# ## 3. Can it say no?
#
# *Difficulty ●●○○○ · importance ●●●●● · 15 minutes*
#
# Before the run you draw what *chance* gives: `null`, one number for each draw. A rule that says
# "holds" to most of those is worth nothing. Which share of the draws passes the rule?
#
# By hand: of 1.1, 1.3, 1.6 and 1.5, two lie in the range from 1.5 to 3.
#
# <details>
# <summary>Hint 1</summary>
#
# The range's ends belong to it.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# Count the draws that lie in the range, and divide by how many there are.
#
# </details>


# %%
def passed_by_chance(null: Sequence[float], least: float, most: float) -> float:
    """Return the share of the null's draws for which the rule would say that the claim holds."""
    ### BEGIN SOLUTION
    return sum(least <= value <= most for value in null) / len(null)
    ### END SOLUTION


# %%
checks.check_passed_by_chance(passed_by_chance)

# %% [markdown]
# ## 4. A claim of your own on trial
#
# *Difficulty ●●●○○ · importance ●●●●● · 25 minutes*
#
# Choose something that you have heard about mixtures of experts. `ledger.stored(name).measures`
# has the numbers of every stored experiment, seed by seed; `ledger.names()` lists those. Ours, to
# be replaced by yours: *"16 experts remember at least twice as much as 4 do."*
#
# The function below runs your trial: it takes the numbers of two settings, seed by seed, relates
# them *pair by pair* by division, and says whether every seed is inside your rule,
# ends included (`"holds"`), every seed outside (`"does not hold"`), or neither (`"undecided"`).
# That is blunter than an interval and needs no statistics.
#
# By hand: 4, 6 and 2, 2 give 2 and 3. With a rule of "at least 2": holds. With "at least 2.5":
# undecided.
#
# <details>
# <summary>Hint 1</summary>
#
# First the quotients, one for each seed, and only then the rule.
#
# </details>
#
# <details>
# <summary>Hint 2</summary>
#
# `all(...)` twice: of all that are inside, then of all that are not.
#
# </details>


# %%
def my_trial(ours: Sequence[float], theirs: Sequence[float], least: float, most: float) -> str:
    """Return the verdict of all seeds on the claim that ours / theirs lies in a range."""
    ### BEGIN SOLUTION
    inside = [least <= a / b <= most for a, b in zip(ours, theirs, strict=True)]
    return "holds" if all(inside) else "undecided" if any(inside) else "does not hold"
    ### END SOLUTION


# %%
checks.check_my_trial(my_trial)

# %% [markdown]
# Write *your* claim here, and its rule, **before** you look at the numbers. Then run the cell.

# %%
claim, least, most = "16 experts remember at least twice as much as 4 do", 2.0, float("inf")
shares = ledger.stored("allenzhu2024").measures
ours, theirs = shares["remembered at E = 16"], shares["remembered at E = 4"]
print(claim, "->", my_trial(ours, theirs, least, most))

# %% [markdown]
# ## What you can now say
#
# 1. Four times as fast is 300% faster and saves 75%: name one, and say which.
# 2. An interval across the border decides nothing.
# 3. A rule that chance passes is no rule.
# 4. Claim, number, rule, run, verdict: in that order.
