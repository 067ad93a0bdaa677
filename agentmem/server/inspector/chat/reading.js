/** What an answer read, word by word: from the server's record of its tokens. */

const SEGMENTER = new Intl.Segmenter(undefined, { granularity: "word" });

/**
 * @typedef {{ text: string, shares: number[] | null, total: number }} Piece
 * a word, with the attention share of each memory over it (in order of the answer's memories), or what is between words
 */

/**
 * Cut an answer into words, each with the mean share of the tokens that it is made of.
 * @param {string} text
 * @param {{ start: number, end: number, attention: Record<string, number> }[]} tokens
 * @param {number} n how many memories there are
 * @returns {Piece[]}
 */
export function wordsOf(text, tokens, n) {
  const pieces = [];
  let at = 0;
  for (const { segment: part } of SEGMENTER.segment(text)) {
    const end = at + [...part].length; // the server counts code points
    const word = part.trim() !== "";
    // A token without a character of its own is part of the character that it begins.
    const own = word ? tokens.filter((token) => token.start < end && (token.end > at || token.start >= at)) : [];
    const shares = own.length ? mean(own, n) : null;
    pieces.push({ text: part, shares, total: shares ? shares.reduce((sum, share) => sum + share, 0) : 0 });
    at = end;
  }
  return pieces;
}

function mean(tokens, n) {
  const shares = new Array(n).fill(0);
  for (const { attention } of tokens) {
    for (const [memory, share] of Object.entries(attention)) shares[Number(memory)] += share / tokens.length;
  }
  return shares;
}

/** The place of the largest number; -1 of none. @param {number[]} numbers */
export const largest = (numbers) => numbers.indexOf(Math.max(...numbers));
