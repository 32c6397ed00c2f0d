-- name: insert_customer
insert into aizen.customers (id, name, require_second_approver) values ($1, $2, $3)
on conflict (id) do nothing
returning *

-- name: list_customers
select * from aizen.customers order by created_at, id

-- name: read_customer
select * from aizen.customers where id = $1

-- name: membership
-- To which customer a user belongs, and as what.
select customer_id, role from aizen.members where user_id = $1

-- name: add_member
-- A user belongs to one customer: nothing when it is another one.
insert into aizen.members (user_id, customer_id, role) values ($1, $2, $3)
on conflict (user_id) do update set role = excluded.role where members.customer_id = excluded.customer_id
returning *

-- name: remove_member
delete from aizen.members where user_id = $1 and customer_id = $2 returning *

-- name: list_members
select * from aizen.members where customer_id = $1 order by created_at, user_id
