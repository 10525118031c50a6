// The live log: text only, a bounded number of lines, scrolled to its end unless the reader scrolled up.

const MAX_LINES = 2000;
const NEAR_THE_END_PX = 30;

export class Log {
  constructor(element) {
    this._element = element;
    this._scrollToEnd();
  }

  append(text) {
    const lines = text.split("\n");
    if (lines.at(-1) === "") lines.pop();
    const follows = this._isAtEnd();
    this._element.append(...lines.slice(-MAX_LINES).map(buildLine));
    while (this._element.childElementCount > MAX_LINES) this._element.firstElementChild.remove();
    if (follows) this._scrollToEnd();
  }

  _isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this._element;
    return scrollHeight - scrollTop - clientHeight < NEAR_THE_END_PX;
  }

  _scrollToEnd() {
    this._element.scrollTop = this._element.scrollHeight;
  }
}

function buildLine(text) {
  const line = document.createElement("span");
  line.textContent = `${text}\n`;
  return line;
}
