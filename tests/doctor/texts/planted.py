"""A set of texts with one fault of each kind in known rows, among two hundred that have none."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

TRAIN, HELD = "train.jsonl", "heldout.jsonl"
ROWS, HELD_ROWS, MANY = 200, 20, 900

SAID = {
    "delivery": (
        "the courier left my {} with a neighbour nobody on the street has ever met",
        "tracking has said out for delivery since Monday and the {} is nowhere to be seen",
        "the parcel with the {} went to the depot across the river instead of my door",
        "the driver claims he rang twice, yet the {} never arrived",
        "my {} was supposed to be shipped last week and the tracking page is still blank",
        "half of the shipment turned up, the {} is still on some van",
        "please send the {} to the office address, the courier cannot get into our yard",
        "the {} was delivered to the wrong floor and the parcel was left in the rain",
    ),
    "billing": (
        "the invoice lists the {} twice and my card was charged for both",
        "I was charged a fee for the {} that no invoice explains",
        "the refund for the {} has not reached my bank account",
        "could I have an invoice with our tax number for the {}",
        "the price of the {} on my statement is higher than the one I agreed to pay",
        "my payment for the {} was declined but the bank shows it as paid",
        "the discount code did not come off the price of the {} when I paid",
        "you debited my bank twice this month and the {} was free of charge",
    ),
    "product_fault": (
        "the {} makes a grinding noise and stops after a minute",
        "a hinge of the {} snapped on the very first evening",
        "the {} came out of its box with a crack along one side",
        "smoke rose from the {} as soon as it was plugged in, so it is broken",
        "the {} leaks from below and has stained the shelf",
        "two screws of the {} are bent and the lid will not close any more, clearly defective",
        "the switch on the {} is loose and the lamp flickers",
        "the coating of the {} peels off and leaves flakes everywhere, it is faulty",
    ),
    "account": (
        "the login page forgets my password each time I look up the {}",
        "I changed my phone and the sign-in code for my profile goes nowhere, so the {} stays out of reach",
        "somebody else's name appears in my profile beside the {}",
        "please delete my account, I only made it to read about the {}",
        "my account was locked after three wrong passwords while I looked at the {}",
        "how do I merge two logins, one of which holds the warranty of the {}",
        "the email for resetting my password never comes, and the {} is registered there",
        "I cannot change the username of my account, it still says {}",
    ),
    "praise": (
        "the {} is a delight and I smile whenever I use it",
        "thank you for the {}, my whole family loves it",
        "best {} I have ever owned, wonderful work",
        "your team was kind and patient when I asked about the {}, many thanks",
        "I am so happy with the {} that I told all my friends",
        "the {} is beautifully made, compliments to whoever designed it",
        "what a lovely surprise the {} was, thanks to everybody",
        "five stars for the {}, brilliant and lovely in every way",
    ),
}
THINGS = (
    "kettle|rucksack|desk lamp|garden hose|bread knife|wool blanket|bicycle pump|toaster|rain jacket|chess board|"
    "coffee grinder|picture frame|yoga mat|bird feeder|camping stove|alarm clock|sewing machine|wall shelf|tea set|"
    "hair dryer|violin bow|paint roller|fish tank|door bell|ice skates"
).split("|")
OPENINGS = (
    "Good morning|Hello there|Hi all|Dear team|Just so you know|A short note from Leeds|Writing from my lunch break|"
    "Me again|First message to you|Good evening from Porto|Greetings|Hope you are well|Excuse the hurry|"
    "On a rainy Sunday"
).split("|")
CIRCUMSTANCES = (
    "We are hosting eleven guests this weekend|My grandmother turns ninety soon|I run a small bakery by the station|"
    "The children keep asking me|It was meant as a wedding gift|I live on a narrowboat|"
    "Our school has its fair on Friday|"
    "I moved house a fortnight ago|My shift starts at five|We have a very curious parrot|I am typing with one hand|"
    "The landlord is watching all this|I work nights at the hospital|My brother recommended your shop|"
    "Winter is long up here|Our club meets every Thursday|I teach pottery to beginners|The dog finds it fascinating|"
    "We are renovating the attic|I bought it in your spring sale|My knees are not what they were|"
    "I keep bees and have little spare time|The stairs in our building are steep|Tomorrow we set off for the coast"
).split("|")
CLOSINGS = (
    "Regards, Tom|Looking forward to your answer|That is all for now|Have a good week|Please look into it|Yours, Ines|"
    "Let me know what you think|Written in haste|Cheers from the north|Back at my desk at three|Until soon|"
    "More another day|Speak soon|Over to you"
).split("|")


@dataclass(frozen=True)
class Planted:
    """Where everything lies, and which rows each finding must name.

    Attributes:
        path, held_out: the two files.
        named: the rows that a finding's items name, by the finding's name, in any order.
        secrets: what no report may show in full.
    """

    path: Path
    held_out: Path
    named: dict[str, set[str]]
    secrets: tuple[str, ...]


def clean_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows without a fault: messages under five labels, as different as people's are."""
    draw = random.Random(seed)
    labels, rows, used = sorted(SAID), [], set()
    while len(rows) < count:
        label = labels[len(rows) % len(labels)]
        said, thing, circumstance = draw.choice(SAID[label]), draw.choice(THINGS), draw.choice(CIRCUMSTANCES)
        # Up to a few hundred rows no two say the same about the same thing; of more some have to.
        key = (said, thing) if count < MANY else (said, thing, circumstance)
        if key in used:
            continue
        used.add(key)
        parts = [f"{draw.choice(OPENINGS)}, {said.format(thing)}", circumstance, draw.choice(CLOSINGS)]
        rows.append({"id": f"m{seed}-{len(rows)}", "message": ". ".join(parts) + ".", "label": label})
    return rows


def plant(folder: Path) -> Planted:
    """Write both files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str] | str] = [*clean_rows(ROWS)]
    held = [*clean_rows(HELD_ROWS, seed=7)]
    for number, row in enumerate([*rows, *held]):
        row["customer"] = f"c-{number}"
    named: dict[str, set[str]] = {}

    def add(row: dict[str, str] | str, finding: str, *others: str) -> str:
        rows.append(row)
        name = f"{TRAIN}:{len(rows)}"
        named.setdefault(finding, set()).update({name, *others})
        return name

    add({**rows[11], "id": "again"}, "duplicate", f"{TRAIN}:12")
    near = rows[24]["message"].replace("Please look into it", "Please look into this").replace(". ", ", ", 1)
    near = near.rstrip(".") + ", as I said."
    add({**rows[24], "id": "nearly", "message": near}, "nearly_equal", f"{TRAIN}:25")
    bad = "The café’s naïve crème brûlée torch is lovely and I am so happy with it, many thanks to you all"
    add({"message": bad.encode().decode("cp1252"), "label": "praise"}, "damaged")
    add({"message": "My flask is lovely � thanks for the quick and kind help with choosing", "label": "praise"}, "lost")
    add({"message": "  ", "label": "billing"}, "blank")
    long = " ".join(row["message"] for row in clean_rows(890, seed=3) if row["label"] == "delivery")
    add(
        {"message": f"The courier lost my parcel, and here is the whole story. {long}", "label": "delivery"},
        "about_too_long",
    )
    email, card, key = "ruth.adler@kettle-and-pine.net", "4929 1234 5678 9015", "sk-Zq8vT2nLr5Yb7Wc1Xd4Ke9"
    private = f"Charged twice for one invoice: pay it back to {card} or write to {email}, order 20391187266"
    add({"message": private, "label": "billing"}, "card")
    named["email"] = set(named["card"])
    add(
        {"message": f"The login wants an account password, I only have {key} from your page", "label": "account"}, "key"
    )
    add({"message": held[4]["message"].upper(), "label": held[4]["label"]}, "leak", f"{HELD}:5")
    add(
        {
            "message": "My violin case arrived with the parcel and the courier smiled",
            "label": "delivery",
            "customer": held[9]["customer"],
        },
        "group_leak",
        f"{HELD}:10",
    )
    add('{"message": "The kettle drips", "label": "product_fault"', "unreadable")
    add(
        {
            "message": "My shelf snapped and the {} is broken".format("hinge of the attic door"),
            "label": "Product fault",
        },
        "label_spelling",
    )
    for place, label in ((31, "praise"), (52, "account"), (88, "delivery"), (129, "billing"), (166, "product_fault")):
        assert rows[place]["label"] != label
        rows[place] = {**rows[place], "label": label}
        named.setdefault("label_doubtful", set()).add(f"{TRAIN}:{place + 1}")
    path, held_path = folder / TRAIN, folder.parent / f"{folder.name}-held" / HELD
    held_path.parent.mkdir(exist_ok=True)
    _write(path, rows)
    _write(held_path, held)
    return Planted(path, held_path, named, (email, card, key, card.replace(" ", "")))


def _write(path: Path, rows) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
