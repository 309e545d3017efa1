// Wide tables scroll by keyboard too.
window.addEventListener('load', () => {
  for (const wrap of document.querySelectorAll('.md-typeset__scrollwrap')) wrap.tabIndex = 0
})

// Sorts and filters the table of networks on the first page.
document.addEventListener('DOMContentLoaded', () => {
  const root = document.querySelector('.networks')
  if (!root) return
  const body = root.querySelector('tbody')
  const rows = [...body.rows]
  const heads = [...root.querySelectorAll('th')]
  const [text, onlyWeights] = root.querySelectorAll('input')
  const family = root.querySelector('select')

  const cell = (row, column) => row.cells[column].textContent
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/)
    let shown = 0
    for (const row of rows) {
      const all = row.textContent.toLowerCase()
      row.hidden = !words.every(word => all.includes(word)) ||
        (family.value && cell(row, 1) !== family.value) ||
        (onlyWeights.checked && cell(row, 7) === 'none')
      shown += !row.hidden
    }
    root.querySelector('[role=status]').textContent = `${shown} network${shown === 1 ? '' : 's'}`
  }
  const sort = column => {
    const head = heads[column]
    const down = head.getAttribute('aria-sort') === 'ascending'
    heads.forEach(other => other.setAttribute('aria-sort', 'none'))
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending')
    const numeric = head.classList.contains('number')
    rows.sort((a, b) => {
      const [x, y] = [cell(a, column), cell(b, column)]
      if (!x || !y) return !x - !y // rows without a value stay at the end
      const order = numeric ? x - y : x.localeCompare(y)
      return down ? -order : order
    })
    body.append(...rows)
  }

  for (const control of [text, family, onlyWeights]) control.addEventListener('input', filter)
  heads.forEach((head, column) => head.firstElementChild.addEventListener('click', () => sort(column)))
})
