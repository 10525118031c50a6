"""Words that names are told by: the lists in `lists/` (from where: docs/decisions/0011), and words that are none."""

import functools
from importlib import resources

TITLES = frozenset(
    "dr mr mrs ms miss mx prof professor doctor nurse sister brother father rev reverend judge sir madam dame capt"
    " sgt lt col señor señora herr frau".split()
)
PARTICLES = "de|van|von|der|den|la|del|di|da|dos|le|du|bin|al|el|ten|ter|st"
CONTEXT_OF_EPONYMS = frozenset(
    "disease syndrome sign test criteria score scale disorder palsy anemia anaemia lymphoma sarcoma tumor tumour"
    " carcinoma contracture procedure operation"
    " catheter reflex maneuver manoeuvre phenomenon gene genes mutation mutations protein law ligament node nodes"
    " tube body bodies cell cells ring rings method"
    " technique fracture thyroiditis arthritis esophagus oesophagus chorea ataxia dystrophy atrophy encephalopathy"
    " encephalitis neuropathy nephropathy hernia"
    " abscess lesion nevus point angle index formula classification staging stain agar virus fever position drain"
    " forceps clamp retractor pouch incision shunt"
    " laparotomy repair deformity malformation complex type variant anomaly dementia hydrocele cyst canal duct gland"
    " layer membrane line lines sphere stage".split()
)
EPONYMS = frozenset(
    "parkinson parkinsons alzheimer alzheimers crohn crohns foley graves apgar hodgkin hodgkins downs marfan cushing"
    " hashimoto tourette raynaud sjogren kaposi burkitt"
    " wilms gaucher fabry pompe tay sachs huntington barrett meniere kawasaki guillain barre charcot duchenne glasgow"
    " doppler holter babinski romberg kernig"
    " brudzinski trendelenburg valsalva heimlich braden karnofsky gleason papanicolaou coombs gram giemsa golgi"
    " purkinje schwann kupffer langerhans dupuytren"
    " paget behcet takayasu wegener goodpasture klinefelter noonan prader willi angelman rett asperger zollinger"
    " ellison whipple wernicke korsakoff creutzfeldt"
    " jakob kaplan meier hickman kocher penrose hartmann nissen billroth wechsler mantoux epstein barr coxsackie"
    " marburg zika ebola lyme chagas fournier lennox"
    " gastaut friedreich niemann willebrand celsius fahrenheit kelvin pap bartholin fallopian eustachian marlboro"
    " lantus allegra humira titin woody bethesda".split()
)
PLACES = frozenset(
    "houston austin dallas jackson lincoln madison washington virginia carolina georgia florence paris sydney"
    " charlotte chester israel jordan chad london berlin boston"
    " cleveland rochester orlando santiago victoria alexandria lancaster kent york bristol hamilton wellington"
    " brooklyn phoenix salem montana dakota maryland asia africa"
    " china india america europe france spain italy germany kenya holland england ireland scotland wales lima sofia"
    " milan roma vienna geneva adelaide perth durham derby"
    " tours lyon aurora eugene reno savannah cuba trinidad troy memphis chelsea arlington bethesda stanford harvard"
    " duke emory baylor baltimore denver"
    " indiana tennessee arizona dominican arab czech maine texas brittany birmingham english caribbean mediterranean"
    " jerusalem congo somalia siberia persia tamil".split()
)
STOP = frozenset(
    "the a an and or but if in on at to of for from with without by as is was were are be been has have had he she it"
    " they we you i his her their our your my this that these"
    " those who what when where why how there here then than not no yes all any some more most other such only own"
    " same so too very can just should now after before"
    " during since until while about presented presents admitted seen came comes reports reported denies denied"
    " states stated called arrived underwent complains complained"
    " returned said says told asked today yesterday tomorrow morning patient patients pt doctor nurse male female man"
    " woman boy girl year years old history diagnosis date dob"
    " mrn ssn phone tel fax email address age sex gender room ward clinic hospital medical center centre university"
    " department dept school college institute health care"
    " service services insurance medicare medicaid name number id notes note please thank thanks dear hello hi"
    " regards sincerely best signed attending physician provider"
    " surgeon practitioner assistant specialist resident fellow intern consultant therapist mother father son"
    " daughter husband wife brother sister monday tuesday wednesday"
    " thursday friday saturday sunday january february march july august september october november december jan feb"
    " mar apr jun jul aug sep oct nov dec"
    " street avenue road drive lane north south east west united states american national international research"
    " disease syndrome disorder cancer blood heart lung liver"
    " kidney brain signs symptoms treatment treatments causes family also however although because unless whether"
    " each every both many several different types type key points"
    " md rn do phd np pa dds lpn facs see follow up discharge discharged admission unknown none pending normal left"
    " right contact referred seen by me him them us"
    " works lives living met asked wants needs takes feels went goes got gets does did might must could would shall"
    " let lets ok okay chief complaint assessment plan"
    " per via re cc attn ext inc llc ltd corp company group foundation association society trust bank church library"
    " home house mobile cell".split()
)


@functools.cache
def load_names() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Given names, surnames, and those of them that are ordinary words too; in lower case."""
    given, surnames, ordinary = (_read(f"{name}.txt") for name in ("given_names", "surnames", "ordinary_words"))
    return given - STOP, surnames - STOP, ordinary | STOP


def _read(name: str) -> frozenset[str]:
    path = resources.files(__package__) / "lists" / name
    return frozenset(path.read_text(encoding="utf-8").split())
