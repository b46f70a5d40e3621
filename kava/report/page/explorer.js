// Questions with every arm's answer: filtered, and shown twenty at a time.
// Whatever a model wrote goes into the page as a text node, never as markup.
{
  const AT_ONCE = 20;
  const TYPING_MS = 150;

  const make = (tag, name, ...children) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  };
  const mark = (right) => make("span", right ? "mark right" : "mark wrong", right ? "✓ right" : "✗ wrong");

  // A text, folded where it is long; `leftOut` characters of it are not in the page.
  function folded(text, leftOut, fold) {
    if (!text.trim()) return [make("div", "text none", "no text")];
    if (text.length <= fold && !leftOut) return [make("div", "text", text)];
    const whole = make("div", "text long", text);
    whole.tabIndex = 0;
    const size = (text.length + leftOut).toLocaleString("en");
    const rest = make("details", "", make("summary", "", `all ${size} characters`), whole);
    if (leftOut) {
      rest.append(make("p", "note", `${leftOut.toLocaleString("en")} more characters stand in samples.jsonl.`));
    }
    return [make("div", "text", text.slice(0, fold) + "…"), rest];
  }

  // An answer is its text, a number by each metric, and the characters left out.
  function answerCard(name, [text, ...numbers], data) {
    const leftOut = numbers.pop();
    const heading = make("h4", "", name + " ");
    if (data.marks) heading.append(mark(numbers[0]));
    data.metrics.forEach((metric, i) => {
      const number = numbers[i];
      if (number === null || (i === 0 && data.marks)) return;
      // A mark of another kind is told of where it differs from the first; where that is none, if it is right.
      if (metric.mark && number === (data.marks ? numbers[0] : 0)) return;
      const said = metric.mark ? `: ${number ? "right" : "wrong"}` : ` ${number.toFixed(3)}`;
      heading.append(" ", make("span", "tag", metric.label + said));
    });
    return make("section", "answer", heading, ...folded(text, leftOut, data.fold));
  }

  // `first` are the arms whose answers are shown even where there are too many arms to show all.
  function questionCard(question, seed, data, first) {
    const answers = question.answers[seed];
    const cards = (indices) => make("div", "answers", ...indices.map((i) => answerCard(data.arms[i], answers[i], data)));
    const card = make(
      "article", "sample",
      make("h3", "", make("small", "", `question ${question.doc_id}`)),
      make("div", "question", ...folded(question.question, 0, data.fold)),
      make("div", "gold", make("h4", "", "gold"), ...folded(question.gold, 0, data.fold)),
    );
    if (!data.many) {
      card.append(cards(data.order));
      return card;
    }
    for (const right of data.marks ? [1, 0] : []) {
      const names = data.order.filter((i) => answers[i][1] === right).map((i) => data.arms[i]);
      card.append(make("p", "who", mark(right), " ", names.join(", ") || make("small", "", "none")));
    }
    if (first.length) card.append(cards(first));
    const all = make("details", "", make("summary", "", `all ${data.order.length} answers`));
    all.addEventListener("toggle", () => all.append(cards(data.order)), { once: true });
    card.append(all);
    return card;
  }

  const PATTERNS = {
    all: () => true,
    disagree: (marks) => marks.includes(0) && marks.includes(1),
    right: (marks) => !marks.includes(0),
    wrong: (marks) => !marks.includes(1),
  };

  function explore(place) {
    const data = JSON.parse(document.getElementById("samples-data").textContent);
    const filters = place.querySelector("fieldset");
    const list = place.querySelector(".questions");
    const more = place.querySelector(".more");
    const count = place.querySelector("output");
    const { text, marks, right, wrong, seed } = filters.elements;
    let found = [];

    function matches(question) {
      const answers = question.answers[seed.value];
      if (data.marks) {
        if (!PATTERNS[marks.value](answers.map((answer) => answer[1]))) return false;
        if (right.value && answers[right.value][1] !== 1) return false;
        if (wrong.value && answers[wrong.value][1] !== 0) return false;
      }
      const wanted = text.value.trim().toLowerCase();
      const texts = [question.question, question.gold, ...answers.map((answer) => answer[0])];
      return texts.some((each) => each.toLowerCase().includes(wanted));
    }

    // Shows the next of the questions found, and returns the first of these.
    function grow() {
      const shown = list.childElementCount;
      const first = data.marks ? [...new Set([right.value, wrong.value])].filter((i) => i !== "").map(Number) : [];
      const cards = found.slice(shown, shown + AT_ONCE).map((each) => questionCard(each, seed.value, data, first));
      list.append(...cards);
      const left = found.length - list.childElementCount;
      more.hidden = left === 0;
      more.textContent = `Show ${Math.min(left, AT_ONCE)} more of ${left}`;
      return cards[0];
    }

    function update() {
      found = data.questions.filter(matches);
      count.textContent = `${found.length} of ${data.questions.length} questions match`;
      list.replaceChildren();
      grow();
    }

    let typing;
    text.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(update, TYPING_MS);
    });
    for (const select of data.marks ? [marks, right, wrong, seed] : [seed]) select.addEventListener("change", update);
    place.querySelector(".clear").addEventListener("click", () => {
      text.value = "";
      if (data.marks) {
        right.value = wrong.value = "";
        marks.value = "all";
      }
      update();
      text.focus();
    });
    more.addEventListener("click", () => {
      const card = grow();
      card.tabIndex = -1;
      card.focus({ preventScroll: true });
    });
    filters.hidden = false;
    update();
  }

  const place = document.getElementById("explorer");
  if (place) explore(place);
}
