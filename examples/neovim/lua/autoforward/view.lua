-- The buffer of `:Ports`: one line per port, brought up to date while it is shown.

local text = require('autoforward.text')

local M = {}

local NAME = 'autoforward://ports'
local HEADER = { 'PORT', 'URL', 'LABEL', 'STATUS' }
local HEADER_LINES = 1

local buffer, shown = nil, {}

local function cells(row)
  local port = tostring(row.port) .. (row.transport == 'udp' and '/udp' or '')
  local status = text.plain(row.status or '-')
  if row.reason then
    status = ('%s (%s)'):format(status, text.plain(row.reason))
  end
  return { port, text.where(row), text.plain(row.label or ''), status }
end

-- Lines of a table whose columns are aligned; the last column is as long as it is.
function M.lines(rows)
  local table_rows, widths = { HEADER }, {}
  for _, row in ipairs(rows) do
    table_rows[#table_rows + 1] = cells(row)
  end
  for _, row in ipairs(table_rows) do
    for column, cell in ipairs(row) do
      widths[column] = math.max(widths[column] or 0, vim.fn.strdisplaywidth(cell))
    end
  end
  return vim.tbl_map(function(row)
    local parts = {}
    for column, cell in ipairs(row) do
      local pad = column < #row and widths[column] - vim.fn.strdisplaywidth(cell) or 0
      parts[column] = cell .. (' '):rep(pad)
    end
    return (table.concat(parts, '  '):gsub('%s+$', ''))
  end, table_rows)
end

-- `note` is a line for when there is nothing, or something is wrong.
function M.render(rows, note)
  if not buffer or not vim.api.nvim_buf_is_valid(buffer) then
    return
  end
  local lines = M.lines(rows)
  if note then
    vim.list_extend(lines, { '', text.plain(note) })
  end
  shown = rows
  vim.bo[buffer].modifiable = true
  vim.api.nvim_buf_set_lines(buffer, 0, -1, false, lines)
  vim.bo[buffer].modifiable = false
  vim.bo[buffer].modified = false
end

local function row_at_cursor()
  return shown[vim.api.nvim_win_get_cursor(0)[1] - HEADER_LINES]
end

-- Show the buffer in a window below, or go to it. `open(row)` is called by <CR> and gx.
function M.show(open)
  if buffer and vim.api.nvim_buf_is_valid(buffer) then
    local window = vim.fn.bufwinid(buffer)
    if window ~= -1 then
      vim.api.nvim_set_current_win(window)
      return
    end
  else
    buffer = vim.api.nvim_create_buf(false, true)
    vim.api.nvim_buf_set_name(buffer, NAME)
    vim.bo[buffer].bufhidden = 'wipe'
    vim.bo[buffer].filetype = 'autoforward'
    local function map(key, action)
      vim.keymap.set('n', key, action, { buffer = buffer, nowait = true, silent = true })
    end
    local function open_row()
      local row = row_at_cursor()
      if row then
        open(row)
      end
    end
    map('<CR>', open_row)
    map('gx', open_row)
    map('q', function()
      vim.api.nvim_buf_delete(0, { force = true })
    end)
  end
  vim.cmd('botright 10split')
  vim.api.nvim_win_set_buf(0, buffer)
  vim.wo.wrap = false
end

return M
